"""The benchmarks of the VL-Rethinker paper, each read from the layout it is published in (docs/evaluation.md)."""

from tasks.benchmarks import emma, mathverse, mathvision, mathvista, megabench, mmmu, mmmu_pro
from tasks.benchmarks.questions import Benchmark

BENCHMARKS: dict[str, Benchmark] = {
    module.BENCHMARK.name: module.BENCHMARK for module in (mathvista, mathverse, mathvision, mmmu_pro, mmmu, emma, megabench)
}

__all__ = ["BENCHMARKS"]
