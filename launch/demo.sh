#!/usr/bin/env bash
# Text to video on this machine, from nothing: sets up .venv, trains configs/shapes.py, samples
# captioned videos from the result and scores them.
#   bash launch/demo.sh           everything goes to demo/; run again, it goes on where it stopped
#   bash launch/demo.sh FOLDER    another folder
set -eu
out=$(realpath -m "${1:-demo}")
source "$(dirname "$0")/environment.sh" requirements.txt

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

echo "videos:         $out/samples/*.mp4"
echo "contact sheets: $out/samples/sheet.png, $out/sheet.png (64 prompts, each marked right or wrong)"
echo "report:         $out/report.json"
