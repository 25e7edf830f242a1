#!/usr/bin/env bash
# Text to video on this machine, from nothing: sets up .venv, shows videos of the models in models/,
# then trains a smaller one of its own, samples it and scores it. About ten minutes on two cores.
#   bash launch/demo.sh           everything goes to demo/; run again, it goes on where it stopped
#   bash launch/demo.sh FOLDER    another folder
set -eu
case "$#:${1:-}" in
  1:-h | 1:--help) sed -n '2,/^[^#]/s/^# \{0,1\}//p' "$0"; exit ;;
  0: | 1:[!-]*) ;;
  *) echo "error: demo.sh takes one folder or nothing, not '$*' (see --help)" >&2; exit 2 ;;
esac
out=$(realpath -m "${1:-demo}")
source "$(dirname "$0")/environment.sh" requirements.txt

echo
echo "1. Videos of 8 x 64 x 64 pixels by the paper's recipe in small: FIT with patches and groups, LAMB,"
echo "   and an upsampler, trained for three hours on two cores beforehand (docs/shapes_fit.md)"
"$python" -m launch.sample --checkpoint=models/shapes --upsampler=models/shapes_upsampler \
  --out="$out/shipped" --seed=0 \
  --prompt="a red cross moves up slowly" \
  --prompt="a blue circle moves right quickly"
echo
echo "2. A model of your own: 4 x 16 x 16 pixels, one patch a frame and Adam, so that it learns in"
echo "   minutes (docs/shapes.md)"
echo "first pictures: after 100 steps in $out/run/samples, then every 100 steps"
echo "more, from step 500 on, in another terminal:"
echo "  cd $PWD && $python -m launch.sample --checkpoint=$out/run --out=$out/more \\"
echo "    --prompt=\"a blue cross moves up slowly\""
"$python" -m launch.train --config=configs/shapes.py --workdir="$out/run"

"$python" -m launch.sample --checkpoint="$out/run" --out="$out/samples" --seed=0 \
  --prompt="a red circle moves left quickly" \
  --prompt="a green cross moves right slowly" \
  --prompt="a blue triangle moves up quickly" \
  --prompt="a yellow circle moves down quickly" \
  --prompt="a yellow cross moves left slowly" \
  --prompt="a blue circle moves right quickly" \
  --prompt="a green triangle moves down quickly" \
  --prompt="a red triangle moves up slowly"

"$python" -m launch.evaluate --checkpoint="$out/run" --protocol=shapes --num_samples=64 \
  --out="$out/report.json" --sheet="$out/sheet.png"

echo "videos:         $out/shipped/*.mp4, and of your own model $out/samples/*.mp4"
echo "contact sheets: $out/samples/sheet.png, $out/sheet.png (64 prompts, each marked right or wrong)"
echo "report:         $out/report.json"
