"""Each fault that the project is to survive, and the tests in which it does."""

import ast
from pathlib import Path

import pytest

TESTS = Path(__file__).parent

# fault -> file: names of tests.
FAULTS = {
    "SIGTERM at a random step": {
        "test_train.py": ["a_stopped_run_ends_as_the_unbroken_one_bit_for_bit"],
        "launch/test_kills.py": ["forty_ends_change_no_bit"],
    },
    "SIGTERM to one of two processes": {
        "launch/test_hosts.py": ["a_signal_to_one_process_stops_both_at_the_same_step"],
    },
    "Ctrl-C, and twice": {
        "test_train.py": ["a_stopped_run_ends_as_the_unbroken_one_bit_for_bit"],
        "launch/test_signals.py": ["a_second_signal_ends_the_command_at_once"],
    },
    "kill -9 at a random time, also inside a save": {
        "launch/test_kills.py": ["forty_ends_change_no_bit"],
        "launch/test_verify_resume.py": ["kill_and_resume_change_no_bit"],
        "training/test_checkpoint.py": [
            "what_a_kill_left_uncommitted_is_removed_at_the_next_start"
        ],
    },
    "an empty or half-copied step, junk beside it": {
        "training/test_checkpoint.py": [
            "an_empty_or_foreign_folder_is_passed_over",
            "names_that_only_look_like_numbers_are_no_steps",
            "a_folder_that_says_it_is_of_another_step_is_passed_over",
        ],
    },
    "a flipped bit in any file that a run reads": {
        "test_flips.py": ["a_flipped_bit_is_noticed_or_changes_nothing"],
        "training/test_checkpoint.py": ["a_flipped_bit_is_noticed_and_the_step_before_is_used"],
    },
    "a truncated or missing file of a checkpoint": {
        "training/test_checkpoint.py": [
            "meta_data_that_cannot_be_read_are_passed_over_and_never_none",
            "two_hundred_mutations_of_the_meta_data_are_noticed_or_change_nothing",
        ],
        "test_train.py": ["a_broken_newest_checkpoint_costs_steps_not_the_run"],
    },
    "no checkpoint is sound": {
        "training/test_checkpoint.py": [
            "a_run_whose_checkpoints_are_all_bad_never_starts_anew",
            "where_steps_ever_existed_a_run_never_starts_from_nothing",
        ],
    },
    "a full disk": {
        "test_train.py": [
            "a_disk_that_is_full_for_a_while_costs_a_checkpoint_and_no_bit",
            "a_disk_that_stays_full_ends_the_run_and_what_is_there_stays",
        ],
        "training/test_checkpoint.py": [
            "a_save_on_a_full_disk_is_noticed_and_leaves_nothing_and_the_next_one_works",
            "three_failed_saves_in_a_row_end_the_run_and_two_do_not",
        ],
        "training/test_telemetry.py": ["lines_of_metrics_wait_while_the_disk_is_full"],
        "launch/test_sample.py": ["samples_on_a_full_disk_are_whole_and_go_on_when_there_is_room"],
        "export/test_export_folder.py": ["a_full_disk_leaves_nothing_behind"],
        "studies/miniature/test_miniature.py": [
            "a_study_on_a_full_disk_is_one_line_and_goes_on_when_there_is_room"
        ],
        "launch/test_scaling.py": [
            "a_report_on_a_full_disk_is_one_line_and_the_screen_has_the_figures",
            "a_disk_that_does_not_hold_the_vocabulary_ends_a_study_before_it_trains",
        ],
    },
    "storage out of reach, as after a stale handle of NFS": {
        "launch/test_lost_storage.py": [
            "what_the_system_says_of_a_file_is_one_line_with_the_code_of_storage",
            "data_out_of_reach_are_no_bad_data_and_flags_no_storage",
        ],
        "data/test_pipeline.py": ["data_out_of_reach_end_the_feed_as_an_error_of_storage"],
        "data/test_decoders.py": ["a_file_out_of_reach_is_no_bad_file"],
        "training/test_checkpoint.py": ["a_checkpoint_out_of_reach_is_not_passed_over"],
        "test_storage.py": ["storage_that_cannot_lock_is_not_in_use"],
    },
    "a folder that cannot be written, or is a bucket": {
        "test_train.py": [
            "a_folder_that_cannot_be_made_is_a_storage_error",
            "a_bucket_is_refused_before_anything_is_made",
        ],
    },
    "a batch whose loss is not finite": {
        "training/test_step.py": ["a_step_that_is_not_finite_changes_nothing_but_the_counter"],
        "test_train.py": ["a_step_that_is_skipped_amid_others_ends_nothing"],
    },
    "no batch whose loss is finite": {
        "test_train.py": [
            "a_diverged_run_says_since_when",
            "a_run_that_ends_while_it_skips_is_not_done_and_names_what_is_sound",
            "a_state_that_an_update_destroyed_is_not_saved",
        ],
    },
    "a checkpoint of another architecture": {
        "test_train.py": ["another_experiment_in_the_same_folder_is_refused"],
        "export/test_export_folder.py": ["parameters_of_another_model_are_refused_unread"],
    },
    "a checkpoint of another type of numbers": {
        "test_train.py": ["another_experiment_in_the_same_folder_is_refused"],
        "test_numerics.py": ["the_environment_changes_no_number"],
    },
    "another mesh, another number of hosts": {
        "training/test_checkpoint.py": ["another_mesh_reads_the_same_bits"],
        "launch/test_hosts.py": [
            "one_process_restores_what_two_saved_and_finds_the_parameters_of_its_own_run",
            "two_processes_restore_what_one_saved",
            "the_data_are_those_of_one_process_bit_for_bit",
        ],
    },
    "parameters or EMA alone": {
        "training/test_checkpoint.py": ["a_part_is_restored_alone"],
        "sampling/test_generate.py": ["only_the_ema_is_restored"],
    },
    "retention, and a kill within it": {
        "training/test_checkpoint.py": [
            "retention_keeps_the_last_and_the_milestones",
            "a_kill_between_a_commit_and_the_deletion_that_follows_loses_nothing",
        ],
    },
    "two runs in one folder": {"test_train.py": ["two_runs_cannot_share_a_folder"]},
    "a process of a job dies or hangs": {
        "launch/test_hosts.py": [
            "the_others_name_a_process_that_was_killed_or_hangs",
            "where_the_first_process_was_killed_the_others_end_too",
        ],
    },
    "hosts of other configs or data": {
        "launch/test_hosts.py": ["processes_that_differ_end_with_one_line_each_and_train_nothing"],
    },
    "a clock that jumps": {
        "training/test_checkpoint.py": [
            "a_clock_that_jumps_at_each_look_while_a_step_is_saved_changes_nothing"
        ],
    },
    "input that hangs": {
        "launch/test_bad_data.py": ["input_that_stalls_ends_the_run_with_worker_file_and_stacks"],
    },
    "the order of the data after a stop": {
        "data/test_pipeline.py": [
            "starting_later_yields_the_same_batches",
            "two_hosts_make_the_batches_of_one",
            "an_epoch_shows_every_video_and_every_image_once",
        ],
    },
    "a finished run started again": {
        "test_train.py": ["a_finished_run_started_again_changes_nothing"],
    },
    "files of earlier versions": {
        "training/test_golden.py": [
            "the_golden_checkpoint_is_restored_bit_for_bit",
            "the_golden_export_is_read_bit_for_bit",
        ],
    },
    "an unknown field": {
        "test_fields.py": ["a_flag_of_no_field_names_the_nearest_however_far"],
    },
    "a value of another type or out of range": {
        "test_fields.py": [
            "a_field_takes_what_it_may_be_and_nothing_else",
            "a_flag_takes_what_it_may_be_and_nothing_else",
        ],
    },
    "sizes that do not fit each other": {
        "test_fields.py": ["edges_of_several_fields_are_a_config_or_one_line"],
        "parallel/test_mesh.py": ["sizes_that_do_not_fit_the_devices_are_refused_in_one_line"],
    },
    "a broken, odd or foreign video": {
        "data/test_clips.py": [
            "broken_files_raise_one_line_that_names_the_file",
            "random_damage_raises_nothing_but_data_errors",
            "odd_sizes_ten_bit_and_grey_come_out_alike",
            "the_rotation_flag_turns_frames_upright",
        ],
        "data/test_sources.py": [
            "a_bad_file_is_replaced_and_reported_and_the_rest_keeps_its_order"
        ],
    },
    "a decompression bomb": {
        "data/test_clips.py": [
            "a_decompression_bomb_is_refused_from_its_header",
            "frames_too_large_and_films_too_long_are_refused_before_decoding",
        ],
        "data/test_decoders.py": ["pictures_that_fill_the_memory_are_refused_below_500_mb"],
    },
    "a decoder that dies or hangs": {
        "launch/test_bad_data.py": ["decoders_that_hang_or_die_cost_their_files_alone"],
    },
    "captions of any bytes": {
        "data/test_text.py": ["any_text_gives_ids_in_range", "captions_are_cleaned"],
        "data/test_sources.py": ["missing_folders_videos_and_captions_are_named"],
    },
    "a manifest that points elsewhere": {
        "test_security.py": ["no_row_of_a_manifest_opens_a_file_outside_the_data_folder"],
        "data/test_sources.py": [
            "a_malformed_or_escaping_row_is_refused_by_line_number",
            "a_million_rows_open_in_20_seconds_and_a_gigabyte",
        ],
    },
    "a tar that would do harm": {"files/test_tar.py": ["what_could_do_harm_refuses_the_file"]},
    "a pickle where arrays are expected": {
        "test_security.py": ["nothing_that_is_read_can_run"],
        "files/test_torch_archive.py": ["a_pickle_that_calls_is_refused_and_calls_nothing"],
    },
    "forged or damaged safetensors": {
        "files/test_safetensors.py": ["a_damaged_or_forged_file_is_refused_in_one_line"],
        "test_security.py": [
            "mutated_safetensors_take_no_more_memory_than_their_size_and_end_in_one_line"
        ],
    },
    "exported weights, and a stop while they are written": {
        "export/test_export_folder.py": [
            "the_parameters_come_back_bit_for_bit",
            "what_is_there_is_never_replaced",
            "a_kill_while_it_is_written_leaves_all_or_nothing",
        ],
    },
    "what a sampler cannot use": {
        "launch/test_sample.py": ["every_format_names_its_files_by_place_and_never_by_prompt"],
        "sampling/test_generate.py": ["a_sample_does_not_depend_on_its_batch"],
    },
    "text states of another encoder": {
        "data/test_embeddings.py": [
            "states_of_another_encoder_are_not_mixed_in",
            "states_of_another_size_than_the_config_says_are_refused",
        ],
    },
    "a config that is code of others": {
        "test_security.py": ["nothing_that_is_read_can_run"],
        "test_fields.py": ["a_file_that_makes_no_config_is_one_line"],
    },
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_has_the_tests_that_are_said_to_try_it(fault):
    for file, names in FAULTS[fault].items():
        tree = ast.parse((TESTS / file).read_text())
        there = {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
        assert {f"test_{name}" for name in names} <= there, file
