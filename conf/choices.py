"""The words that settings choose from, each with what it means.

Owns these words; the rest of the code takes them from conf.schema, which imports them all. Must not know Ray, torch or the
engines.
"""

from __future__ import annotations

from enum import Enum


class ReplayMode(str, Enum):
    """What the learner's batches are drawn from (docs/algorithm.md, selective sample replay)."""

    none = "none"  # plain GRPO: every trajectory of the step, zero advantages included
    filter = "filter"  # the step's trajectories with a learning signal, repeated to fill the batch
    episode = "episode"  # SSR as the paper tells it: |A|^alpha draws with replacement from this step
    fifo = "fifo"  # SSR as the authors' code did it: half fresh, half from a queue of half a step
    fresh = "fresh"  # every fresh trajectory with a signal, the rest |A|^alpha exp(-age / tau) from older versions
    prioritized = "prioritized"  # plain prioritised replay: anything there, |A|^alpha exp(-age / tau), from its arrival on


class ReplayRemover(str, Enum):
    """Who leaves first when a full buffer needs room."""

    oldest = "oldest"
    stalest = "stalest"  # by the oldest policy version that sampled one of its tokens
    lowest_priority = "lowest_priority"


class AdvantageKind(str, Enum):
    """The baseline of the advantage."""

    mean = "mean"
    std = "std"
    leave_one_out = "leave_one_out"


class LossAggregation(str, Enum):
    """How token losses become one number."""

    token_mean = "token_mean"
    sequence_mean = "sequence_mean"
    dr_grpo = "dr_grpo"


class ProximalKind(str, Enum):
    """Where the proximal policy of the ratio comes from."""

    recompute = "recompute"  # decoupled PPO: the learner's weights when the batch arrived
    interpolate = "interpolate"  # the same without its forward pass: between behaviour and policy, by the token's version
    behavior = "behavior"  # plain PPO: the engine's log-probs


class BehaviorWeight(str, Enum):
    """What stands for pi_proximal / pi_behavior in the loss."""

    truncated = "truncated"  # a token's ratio, at most behavior_ratio_cap
    tapered = "tapered"  # TOPR: 1 where the advantage is positive, else the whole trajectory's ratio, at most 1
    none = "none"  # 1: stale tokens count as if the learner had sampled them


class LossWeight(str, Enum):
    """What multiplies the log-prob's gradient of a sample that was drawn by |A|^alpha."""

    advantage = "advantage"  # the paper
    sign = "sign"
    corrected = "corrected"  # advantage times (1 / (N P))^beta


class Extraction(str, Enum):
    """Which answer of a response counts."""

    strict = "strict"  # the last \\boxed{} only
    lenient = "lenient"


class EvaluationPrompt(str, Enum):
    """How a benchmark's questions are asked."""

    own = "own"  # as the benchmark itself asks, step by step where it has such a form
    suffix = "suffix"  # the question and its options, then data.prompt_suffix


class RethinkingVariant(str, Enum):
    """How forced rethinking is done (docs/rethinking.md)."""

    blind = "blind"  # nothing looks at the gold answer before y2 is graded; every y2 is kept
    paper_code = "paper_code"  # what the authors' code does, its label leak included; fixes most keys of the section


class Placement(Enum):  # no str, whose method replace would be lost
    """Where y1 + trigger + y2 goes."""

    replace = "replace"  # in the place of its y1
    append = "append"  # beside it, which makes the group larger


class NllTokens(str, Enum):
    """Which tokens of a right y1 + trigger + y2 the NLL term is on."""

    y2 = "y2"
    all = "all"  # also those of y1, and of the trigger where it is trained


class NllWeight(str, Enum):
    """What multiplies a trajectory's NLL term besides rethinking.nll_weight."""

    none = "none"
    gain = "gain"  # r(y2) - r(y1): nothing for a y2 that repeats a right y1


class EvaluationMode(str, Enum):
    """What counts as the answer to a held-out question."""

    none = "none"  # y1
    forced = "forced"  # the last answer of y1 + trigger + y2, also where y1 was right and y2 is not
    bound = "bound"  # the better of both, which no policy can choose without knowing the answer


class ImageSelection(str, Enum):
    """Which prompts a selection keeps, by their images."""

    any = "any"
    only = "only"
    none = "none"


class DataFormat(str, Enum):
    """How a data set is stored and what its columns are called (docs/data.md)."""

    auto = "auto"  # found by looking
    virl39k = "virl39k"
    embedded = "embedded"  # problem, answer, images as bytes
    verl = "verl"
    jsonl = "jsonl"
    hf = "hf"  # a folder that datasets' save_to_disk wrote


class Dtype(str, Enum):
    """Number format of the model, in the learner and in the engine."""

    float32 = "float32"
    bfloat16 = "bfloat16"


class Device(str, Enum):
    """Where the engines run; everything that differs between the two follows from this one key."""

    cpu = "cpu"
    gpu = "gpu"


class Terminal(str, Enum):
    """What a run prints."""

    auto = "auto"  # live on a terminal, else plain
    live = "live"  # a view that is drawn again in its place
    plain = "plain"  # a line for each phase and step
    json = "json"  # the same as one JSON object a line


class Tracker(str, Enum):
    """Where step metrics go besides metrics.jsonl and Ray's own metrics."""

    tensorboard = "tensorboard"
    wandb = "wandb"  # Weights & Biases, of the extra [wandb]
    mlflow = "mlflow"  # of the extra [mlflow]
