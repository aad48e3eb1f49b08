"""Size, latency and exactness of a run's compact models: ``python -m benchmarks.compact RUN``.

Makes a compact model for each case in a temporary folder and times it through the code that devices run: an encoder an
example of 128 tokens, a decoder one token after 64. Latency is the least of eight medians, so that other work on the
machine disturbs little. Writes JSON to stdout; ``logits_difference`` is from PyTorch's, before 8-bit weights.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Final, cast

from benchmarks.step import environment
from edge_runtime.inference import CompactModel
from exporter.compact.export import Quantization, compact_run

CASES: Final = "0.0,0.25,0.5,0.25:int8"
NUM_MEDIANS: Final = 8
LENGTHS: Final = {"text-classification": 128, "causal-lm": 64}


def main() -> None:
    """Parse, make and measure every model, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="run directory: the --out of fedspine run")
    parser.add_argument("--cases", default=CASES, help="sparsity, or sparsity:int8, of each; default: %(default)s")
    parser.add_argument("--threads", type=int, default=1, help="threads of an operator, default: %(default)s")
    arguments = parser.parse_args()
    results = [measure(arguments.run, case, arguments.threads) for case in arguments.cases.split(",")]
    print(json.dumps({"environment": environment(), "models": results}, indent=2))


def measure(run: Path, case: str, threads: int) -> dict[str, Any]:
    """One compact model: time to make it, size, and speed."""
    sparsity, _, quantization = case.partition(":")
    lines: list[str] = []
    begin = time.process_time()
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "compact"
        quantize = cast("Quantization | None", quantization or None)
        info = compact_run(run, float(sparsity), out, quantize=quantize, progress=lines.append)
        cpu_s = time.process_time() - begin
        model = CompactModel.open(out, num_threads=threads)
        latencies = [model.latency(length=LENGTHS[info.task]) for _ in range(NUM_MEDIANS)]
    print(f"{case}: done", file=sys.stderr)
    (difference,) = (line for line in lines if line.startswith("logits differ"))
    return {
        "model": info.model_name,
        "sparsity_wanted": float(sparsity),
        "sparsity": round(info.sparsity, 4),
        "quantization": info.quantization,
        "num_bytes": info.num_bytes,
        "latency_ms": round(min(latency.median_ms for latency in latencies), 2),
        "latency_unit": latencies[0].unit,
        "threads": threads,
        "logits_difference": float(difference.split()[3]),
        "making_cpu_s": round(cpu_s, 1),
    }


if __name__ == "__main__":
    main()
