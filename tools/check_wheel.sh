#!/usr/bin/env bash
# A wheel in an environment that holds nothing else: built, installed with all that it needs (about
# 3 GB), and a small run from a log written here, ranked by baselines and served over HTTP.
#   tools/check_wheel.sh [FOLDER]
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
place=${1:-$(mktemp -d)}
mkdir -p "$place"
cd "$place"
python3 -m venv build && build/bin/pip install --quiet --constraint "$root/constraints.txt" hatchling
build/bin/pip wheel --quiet --no-deps --no-build-isolation --wheel-dir . "$root"
python3 -m venv fresh
fresh/bin/pip install --quiet --constraint "$root/constraints.txt" "$(ls llmrec-*.whl)[serve]"
fresh/bin/python - > log.csv <<'PY'
print("user_id,item_id,timestamp,title")
for user in range(30):
    for step in range(6):
        item = (user + step) % 12
        print(f"u{user},i{item},{1000 * user + step},Title {item}")
PY
cat > mine.yaml <<'YAML'
name: mine
data: {source: log.csv}
systems: [popularity, markov, item_knn]
evaluate: {k: [1, 5], samples: 200}
YAML
fresh/bin/llmrec -q prepare mine.yaml > /dev/null
fresh/bin/llmrec -q recommend mine.yaml > /dev/null
fresh/bin/llmrec -q evaluate mine.yaml > /dev/null
fresh/bin/llmrec -q recommend runs/mine --all-users --out all.parquet --system markov
fresh/bin/llmrec -q serve runs/mine --system markov --port 8765 &
server=$!
for _ in $(seq 120); do
  if fresh/bin/python -c "import urllib.request as u; u.urlopen('http://127.0.0.1:8765/health')" 2> /dev/null; then break; fi
  sleep 0.5
done
fresh/bin/python - <<'PY'
import json
import urllib.request

body = json.dumps({"histories": [["Title 3"]], "top_k": 1}).encode()
request = urllib.request.Request(
    "http://127.0.0.1:8765/recommend", body, {"Content-Type": "application/json"}
)
[result] = json.load(urllib.request.urlopen(request))["results"]
assert result["items"][0]["title"] == "Title 4", result
PY
kill "$server" && wait "$server"
echo "the wheel works: $place"
