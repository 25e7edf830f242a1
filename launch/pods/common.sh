# shellcheck shell=bash
# Sourced by the launchers of this folder: their flags, quoting, dry runs, and what restarts a run.

# Exit codes of launch.train after which the same command would end alike: bad flags or config, bad
# data, a loss that diverged, Ctrl-C.
FINAL_CODES=(2 3 4 130)
# Codes after which it goes on from the last checkpoint: another process ended, storage, and
# processes that aborted (134), crashed (135, 139), were killed (137) or preempted (143).
RESTART_CODES=(1 5 134 135 137 139 143)

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
dry_run="" train=() env=()

fail() {
  echo "error: $*" >&2
  exit 2
}

# Reads a launcher's flags: parse "REQUIRED..." "OPTIONAL..." "SWITCHES..." "$@". --NAME=VALUE sets
# the variable NAME, a switch --NAME sets it to 1, each --env=KEY=VALUE is added to `env`, and what
# follows -- are the flags of launch.train, in `train`.
parse() {
  local required=$1 values=" $1 $2 " switches=" $3 dry_run " flag
  shift 3
  while [ $# -gt 0 ]; do
    flag=${1#--}
    flag=${flag%%=*}
    case $1 in
      -h | --help) help ;;
      --) train=("${@:2}") && break ;;
      --env | --env=*)
        [[ $1 =~ ^--env=[A-Za-z_][A-Za-z0-9_]*= ]] || fail "--env must be --env=KEY=VALUE, not '$1'"
        env+=("${1#--env=}")
        ;;
      --*=*) [[ $values == *" $flag "* ]] || unknown "$1" && printf -v "$flag" %s "${1#*=}" ;;
      --*) [[ $switches == *" $flag "* ]] || unknown "$1" && printf -v "$flag" 1 ;;
      *) fail "unexpected argument '$1'; the flags of launch.train come after -- (see --help)" ;;
    esac
    shift
  done
  for flag in $required; do [ -n "${!flag}" ] || fail "--$flag is required (see --help)"; done
}

unknown() { fail "there is no flag '$1' (see --help)"; }

# Prints the comment that opens the script, which is its help.
help() {
  sed -n '2,/^[^#]/s/^# \{0,1\}//p' "$0"
  exit
}

# Ends the script where no run was asked for, before anything is booked for it.
need_workdir() {
  local word
  for word in ${train[@]+"${train[@]}"}; do [[ $word != --workdir* ]] || return 0; done
  fail "--workdir=FOLDER must be among the flags of launch.train, after --"
}

# Ends the script unless these flags are whole numbers: whole_from LEAST FLAG...
whole_from() {
  local flag
  for flag in "${@:2}"; do
    [[ ${!flag} =~ ^(0|[1-9][0-9]{0,5})$ && ${!flag} -ge $1 ]] ||
      fail "--$flag=${!flag} must be a whole number from $1"
  done
}

# Ends the script unless `name` is one that clouds and Kubernetes take: name_up_to LENGTH.
name_up_to() {
  [[ $name =~ ^[a-z]([a-z0-9-]*[a-z0-9])?$ && ${#name} -le $1 ]] ||
    fail "--name=$name must have up to $1 of a-z, 0-9 and -, and begin with a letter"
}

# Prints its arguments as one command, which any POSIX shell reads back as they are.
quote() {
  local word words=() single="'" escaped="'\\''"
  for word; do
    [[ $word =~ ^[a-zA-Z0-9_./:,=@%+-]+$ ]] || word=$single${word//"$single"/"$escaped"}$single
    words+=("$word")
  done
  printf '%s\n' "${words[*]}"
}

# Prints its argument as a string of JSON, which is one of YAML too.
json() {
  local text=$1 slash="\\"
  text=${text//"$slash"/"$slash$slash"}
  text=${text//'"'/"$slash"'"'}
  text=${text//$'\n'/'\n'}
  text=${text//$'\t'/'\t'}
  text=${text//$'\r'/'\r'}
  [[ $text != *[[:cntrl:]]* ]] || fail "a control character in an argument: $(quote "$1")"
  printf '"%s"' "$text"
}

# Prints its argument so that Kubernetes, which takes $(NAME) for a variable and $$ for $, reads it
# back as it is.
kubernetes() { printf '%s' "${1//'$'/'$$'}"; }

# Runs a command; with --dry_run shows it instead.
run() { if [ -n "$dry_run" ]; then quote "$@"; else "$@"; fi; }

# Returns whether `code`, the first argument, is among the others.
among() { [[ " ${*:2} " == *" $1 "* ]]; }

# Prints its arguments, separated by the first of them: join , 1 2 3.
join() {
  local IFS=$1
  echo "${*:2}"
}
