"""Every setting of a run, frozen and typed; the defaults here are the defaults of the product.

Owns what a run is. Must not know Ray, torch or the engines: importing this module is instant.
A dotted key on the command line (``replay.mode=fresh``) names a field here. ``null`` is allowed only where a
comment says what it means.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from conf.choices import (
    AdvantageKind,
    BehaviorWeight,
    DataFormat,
    Device,
    Dtype,
    EvaluationMode,
    EvaluationPrompt,
    Extraction,
    ImageSelection,
    LossAggregation,
    LossWeight,
    NllTokens,
    NllWeight,
    Placement,
    ProximalKind,
    ReplayMode,
    ReplayRemover,
    RethinkingVariant,
    Terminal,
    Tracker,
)


@dataclass(frozen=True)
class RunConfig:
    """Where a run lives and how long it is."""

    name: str = "run"  # in file names, metrics and Ray's actors
    dir: str = "runs/${run.name}"  # the run folder
    seed: int = 1  # of the order of prompts, the samples and the draws of replay
    num_steps: int = 100  # training steps, each prompts_per_step prompts and updates_per_step optimizer updates
    stages: list[str] = field(default_factory=list)  # each "name=... steps=... key=value ..."; empty: num_steps under one configuration
    stage: str = ""  # train only this one of the stages; empty: all
    resume: bool = False  # go on from the newest checkpoint in the run folder
    auto_resume: bool = False  # go on where the run folder holds a run, start where it holds none: what a job that may be repeated needs
    overwrite: bool = False  # replace a run folder that already holds a run
    stop_grace_s: float = 100.0  # what the step under way and its checkpoint may take after SIGTERM; Slurm's script gives 120 s


@dataclass(frozen=True)
class ModelConfig:
    """The policy."""

    path: str = ""  # a Hugging Face folder; empty: the cold start's model
    dtype: Dtype = Dtype.bfloat16  # of weights and computation, in the learner and in the engines
    max_prompt_tokens: int = 2048  # image tokens included; longer prompts are bad rows
    max_response_tokens: int = 2048  # longer responses are cut off and count as unfinished
    min_pixels: int = 256 * 28 * 28  # smaller images are scaled up by the image processor
    max_pixels: int = 1280 * 28 * 28  # larger images are scaled down by it
    max_images_per_prompt: int = 8  # prompts with more are bad rows
    freeze_vision: bool = False  # keep the vision tower as it is
    trust_remote_code: bool = False  # run Python code that the model's folder brings


@dataclass(frozen=True)
class DataConfig:
    """The prompts and which of them are kept."""

    generate: str = ""  # "quickstart": build the quickstart data at path and test_path before the run; empty: they exist
    path: str = ""  # a folder or file; with a reader, whatever the reader makes of it
    test_path: str = ""  # the same, for evaluation; empty: no evaluation
    format: DataFormat = DataFormat.auto  # the layout of the files
    reader: str = ""  # "module.function" that turns path into rows; empty: files in a known format
    scorer: str = ""  # "module.function" that scores answers; empty: the rows' own answer types
    image_cache: str = ".cache/images"  # where pictures that come as bytes are written; every node must see it under this path
    categories: list[str] = field(default_factory=list)  # keep only these; empty: all
    exclude_categories: list[str] = field(default_factory=list)  # leave these out
    sources: list[str] = field(default_factory=list)  # keep only these; empty: all
    exclude_sources: list[str] = field(default_factory=list)  # leave these out
    images: ImageSelection = ImageSelection.any  # keep prompts with images only, without, or any
    pass_rate_column: str = ""  # such as PassRate_7BBase, or pass_rate that `rethinker data passrate` writes
    min_pass_rate: float | None = None  # keep only rows with at least this; null: no bound
    max_pass_rate: float | None = None  # keep only rows with at most this; null: no bound
    keep_unrated: bool = True  # rows whose pass rate is missing, which is not 0
    max_question_chars: int | None = None  # longer ones are left out; null: no limit
    deduplicate: bool = False  # keep the first of the rows with one question about the same pictures
    category_weights: dict[str, float] = field(default_factory=dict)  # share of the prompts by category; empty: as they come
    prompt_suffix: str = "\n\nPlease reason step by step, and put your final answer within \\boxed{}."  # put after every question
    max_bad_fraction: float = 0.05  # of the rows (unreadable, corrupt image, too long); more ends the run


@dataclass(frozen=True)
class RolloutConfig:
    """The rollout actors and their vLLM engines."""

    num_actors: int = 1  # rollout actors at the start, each with an engine of its own; 0: none before `rethinker scale` asks for some
    min_actors: int | None = None  # of a run that scales by itself, set with max_actors; null: as many as num_actors or `scale` say
    max_actors: int | None = None  # it adds one while steps wait for groups, and lets one go while groups wait for steps
    cpus_per_actor: float = 1.0  # that Ray reserves
    node_resource: str = ""  # Ray resource that only nodes for rollouts declare, one unit an actor; empty: any node
    tensor_parallel_size: int = 1  # GPUs (or CPU workers) of one engine
    threads: int = 1  # compute threads of an engine on CPU
    temperature: float = 1.0  # of the samples; the learner's log-probs are of the same distribution
    top_p: float = 1.0  # 1: off; anything else is refused, docs/corrections.md says why
    top_k: int = -1  # -1: off
    max_concurrent_sequences: int = 256  # vLLM's max_num_seqs
    max_batched_tokens: int = 8192  # vLLM's max_num_batched_tokens
    kv_cache_bytes: int = 268435456  # on CPU
    gpu_memory_utilization: float = 0.9  # on GPU
    prompts_per_call: int = 16  # prompts handed to a rollout actor at once
    lockstep: bool | None = None  # a step's prompts go to the engines together, so that runs repeat exactly; null: if max_staleness is 0
    timeout_s: float = 600.0  # for one call
    start_timeout_s: float = 300.0  # for a place on the cluster and the engine's start


@dataclass(frozen=True)
class RewardConfig:
    """How an answer is scored."""

    extraction: Extraction = Extraction.lenient  # which answer of a response counts
    invalid_reward: float = -0.1  # no end of sequence
    grader_processes: int = 1  # per rollout actor
    grader_timeout_s: float = 5.0  # for one answer, of the time that it is let run
    grader_memory_bytes: int = 2147483648  # of one comparison; a grader process has up to five under way when answers hang


@dataclass(frozen=True)
class ReplayConfig:
    """Selective sample replay."""

    mode: ReplayMode = ReplayMode.episode  # where a batch's trajectories come from
    priority_exponent: float = 1.0  # alpha
    importance_exponent: float = 0.0  # beta of (1 / (N P))^beta, used by algorithm.loss_weight=corrected
    max_trajectories: int = 65536  # bound of what is held, rows that wait included
    max_bytes: int = 8589934592  # of trajectories and images
    remover: ReplayRemover = ReplayRemover.oldest  # makes room when one of the two is reached
    max_times_sampled: int | None = None  # draws of a trajectory in its life (modes that keep trajectories); null: no limit
    priority_refresh: bool = False  # a newer group of the same prompt gives stored advantages a newer baseline
    age_decay_steps: float = 500.0  # tau, in policy versions (modes fresh and prioritized)
    max_age: int = 8  # nothing older is drawn, in policy versions (mode fresh)
    min_size: int = 1  # trajectories before the first draw (mode prioritized)
    samples_per_insert: float | None = None  # draws for one insert, kept by making either wait (mode prioritized); null: no rule
    samples_per_insert_error: float | None = None  # error budget: how many draws ahead or behind that ratio; set with it
    journal: bool = True  # write every accepted insert and draw to disk, so that a restarted actor goes on where it was
    journal_sync_s: float = 0.1  # longest time from accepting something until the disk itself holds it
    timeout_s: float = 600.0  # how long a draw waits for fresh groups, and an insert for room


@dataclass(frozen=True)
class AlgorithmConfig:
    """What is computed in one step."""

    prompts_per_step: int = 64  # P: each training step consumes so many groups
    samples_per_prompt: int = 8  # G
    updates_per_step: int = 1  # optimizer updates between two weight syncs
    batch_size: int | None = None  # trajectories per optimizer update; null: prompts_per_step * samples_per_prompt / updates_per_step
    max_staleness: int = 0  # versions between a fresh token and the step that trains on it, at most; 0: synchronous, on-policy
    advantage: AdvantageKind = AdvantageKind.mean  # the baseline, and whether it is scaled
    loss_aggregation: LossAggregation = LossAggregation.token_mean  # how token losses become one number
    loss_weight: LossWeight = LossWeight.advantage  # what multiplies a trajectory's gradient
    clip_low: float = 0.2  # the ratio is clipped to 1 - clip_low from below
    clip_high: float = 0.35  # and to 1 + clip_high from above
    proximal: ProximalKind = ProximalKind.recompute  # the policy that the ratio is taken against
    behavior_weight: BehaviorWeight = BehaviorWeight.truncated  # how stale tokens are weighted
    behavior_ratio_cap: float = 2.0  # C: upper bound of pi_proximal / pi_behavior
    sequence_ratio_low: float | None = 0.5  # a trajectory's geometric-mean pi / pi_behavior below it isn't trained on; null: no bound
    sequence_ratio_high: float | None = 2.0  # the same above it


@dataclass(frozen=True)
class RethinkingConfig:
    """Forced rethinking: y1 + trigger + y2 (docs/rethinking.md)."""

    enabled: bool = False  # make a part of the rollouts go on
    variant: RethinkingVariant = RethinkingVariant.blind  # our recipe, or the published code's point by point
    fraction: float = 0.5  # q: of the first responses that ended by themselves
    placement: Placement = Placement.replace  # in the place of the first response, or beside it
    temperature: float | None = None  # of y2; null: rollout.temperature
    cut_fraction: float = 0.0  # of the forced y1s that lose their answer before the trigger
    self_verification: list[str] = field(  # triggers of this category
        default_factory=lambda: ["\n\nWait, let's double check.", "\n\nWait, let me check the answer against the question."]
    )
    self_correction: list[str] = field(  # triggers of this category
        default_factory=lambda: ["\n\nWait, there might be a mistake.", "\n\nWait, I may have misread something. Let me look again."]
    )
    self_questioning: list[str] = field(  # triggers of this category
        default_factory=lambda: ["\n\nWait, does it seem right?", "\n\nWait, is there anything that I have overlooked?"]
    )
    category_weights: tuple[float, float, float] = (1.0, 1.0, 1.0)  # of the three above; within one all triggers are equally likely
    nll_weight: float = 0.05  # of the NLL term on right y2s
    nll_tokens: NllTokens = NllTokens.y2  # which tokens of a right response are imitated
    nll_factor: NllWeight = NllWeight.none  # what an imitated response counts
    words: list[str] = field(  # a response with one of them rethinks by itself
        default_factory=lambda: ["wait", "alternatively", "let me check", "double check", "double-check", "re-examine", "reconsider"]
    )


@dataclass(frozen=True)
class LearnerConfig:
    """The DeepSpeed learner group."""

    num_ranks: int = 1  # DeepSpeed ranks, one GPU each on GPUs
    cpus_per_rank: float = 1.0  # that Ray reserves
    node_resource: str = ""  # Ray resource that only nodes for learners declare, one unit a rank; empty: any node
    threads: int = 1  # compute threads of a rank on CPU
    zero_stage: int = 0  # 0 to 3: what ZeRO shares out over the ranks
    learning_rate: float = 1e-6  # of AdamW, at its peak
    betas: tuple[float, float] = (0.9, 0.95)  # of AdamW
    weight_decay: float = 0.0  # of AdamW
    max_grad_norm: float = 1.0  # gradients are clipped to it
    warmup_fraction: float = 0.03  # of all updates, with a rising learning rate
    min_learning_rate_ratio: float = 0.5  # cosine decay ends at this share of learning_rate
    microbatch_tokens: int = 16384  # padded tokens of one micro-batch
    gradient_checkpointing: bool = False  # compute activations again in the backward pass instead of keeping them
    timeout_s: float = 600.0  # for one step, and for a collective
    start_timeout_s: float = 300.0  # for a place on the cluster and the ranks' meeting


@dataclass(frozen=True)
class WeightsConfig:
    """How weights travel from the learner to the engines."""

    bucket_bytes: int = 268435456  # weights are gathered and sent in pieces of this size
    timeout_s: float = 120.0  # for one sync; a rollout actor that takes longer is taken out of service
    mismatch_limit: float | None = None  # nats between engine and learner on the same weights that raise a warning; null: by model.dtype


@dataclass(frozen=True)
class EvaluationConfig:
    """Greedy accuracy on held-out questions."""

    mode: EvaluationMode = EvaluationMode.none  # how a question is answered
    num_questions: int = 1000  # drawn with the run's seed, the same ones each time; 0: all
    every_steps: int = 0  # besides before and after training; 0: never
    max_response_tokens: int | None = None  # null: model.max_response_tokens
    # Of `rethinker evaluate` only (docs/evaluation.md):
    benchmarks: list[str] = field(default_factory=list)  # such as mathvista (docs/evaluation.md); empty: data.test_path's questions
    benchmarks_dir: str = "data/benchmarks"  # holds a copy of each one's data set, in a folder of its name
    questions_per_benchmark: int = 0  # drawn with evaluation.seed; 0: all
    token_limits: list[int] = field(default_factory=list)  # answers are asked for and counted at each; empty: max_response_tokens
    prompt: EvaluationPrompt = EvaluationPrompt.own  # whose words a benchmark's question is put in
    official_guess: bool = False  # also count as the benchmarks' own rules do, which guess where no answer is found
    seed: int = 0  # of the choice of questions, the intervals and the guesses
    resamples: int = 2000  # of the bootstrap
    confidence: float = 0.95  # of the intervals


@dataclass(frozen=True)
class CheckpointConfig:
    """What makes a run resumable."""

    every_steps: int = 50  # 0: only at the end
    keep_last: int = 2  # older ones are removed
    keep_best: int = 0  # of those after which the held-out questions were asked, so many of the best stay besides


@dataclass(frozen=True)
class SupervisionConfig:
    """How the death of a role is noticed and how often it is made good (docs/survival.md)."""

    heartbeat_s: float = 5.0  # between two questions to each rollout actor how it is
    suspect_after: int = 3  # questions in a row without an answer; a suspect gets no new prompts
    dead_after: int = 12  # questions in a row without an answer; its prompts go to others and it is replaced
    max_restarts: int = 16  # of each kind of role within restart_window_s; one more stops the run; 0: the first death does
    restart_window_s: float = 3600.0  # seconds in which max_restarts are counted
    no_rollouts_timeout_s: float = 1800.0  # how long a run waits while no rollout actor is in service
    drain_timeout_s: float = 600.0  # how long a rollout actor that is to leave may finish its prompts; then others get them
    log_lines: int = 20  # of a dead actor's own log that its death report quotes
    scale_window_steps: int = 5  # steps that are looked at together before a run with rollout.max_actors scales itself


@dataclass(frozen=True)
class GuardConfig:
    """When a run that collapses is stopped; medians over window_steps are judged (docs/corrections.md)."""

    enabled: bool = True  # false: let a run go on whatever its measures say
    window_steps: int = 10  # steps that are judged together
    min_ess: float = 0.1  # of ratio/ess; below it the batch hardly says anything about the policy any more
    max_ratio: float = 2.0  # of ratio/mean, and 1 / max_ratio from below; its expectation is 1
    min_effective_query_ratio: float = 0.02  # stops a run only when accuracy fell, too
    min_accuracy_share: float = 0.5  # of the best window's accuracy; above it nothing was lost
    min_accuracy_fall: float = 0.1  # from the best window's; a smaller one is noise


@dataclass(frozen=True)
class ColdstartConfig:
    """The short supervised phase that gives a model made from a configuration the form of an answer."""

    steps: int = 0  # 0: no cold start, model.path is trained as it is
    batch_size: int = 64  # worked answers of a step
    learning_rate: float = 1e-3  # of AdamW, at its peak
    seed: int = 1  # of the model's weights and the choice of answers
    examples: int = 20000  # worked answers, drawn from the training data
    rethinking_fraction: float = 0.05  # of them with a rethinking turn
    direct_steps: int = 0  # last steps, which teach the habit of answering without any work in direct_fraction of the batch
    direct_fraction: float = 0.85  # of a batch of those steps
    cache_dir: str = ".cache/coldstart"  # keyed by the hash of these settings and of the data


@dataclass(frozen=True)
class ReportConfig:
    """Where a run tells how it goes (docs/monitoring.md)."""

    terminal: Terminal = Terminal.auto  # what is printed
    trackers: list[Tracker] = field(default_factory=lambda: [Tracker.tensorboard])  # any of tensorboard, wandb, mlflow
    project: str = "rethinker"  # that the run belongs to at Weights & Biases; the experiment's name in MLflow
    engine_metrics: bool = True  # vLLM's own metrics go to Ray's Prometheus endpoint, too (ray_vllm_*)
    mlflow_uri: str = ""  # of MLflow's server or store; empty: MLFLOW_TRACKING_URI, else a store in the run folder


@dataclass(frozen=True)
class ClusterConfig:
    """The Ray cluster."""

    address: str | None = None  # of a running cluster; null: RAY_ADDRESS, else a local one that the run starts and stops
    device: Device = Device.cpu  # what engines and learner compute on
    num_cpus: int | None = None  # of the local cluster; null: the machine's
    object_store_bytes: int = 536870912  # of the local cluster
    dashboard: bool = True  # of the local cluster
    dashboard_host: str = "127.0.0.1"  # where that dashboard listens; 0.0.0.0 opens it, and with it the right to run code, to the network
    autoscaling: bool = False  # the cluster adds nodes on demand: what doesn't fit now is waited for (start_timeout_s), not refused
    gpu_memory_bytes: int = 85899345920  # of one GPU, for 'rethinker plan'
    log_to_driver: bool = False  # print what the actors print, the engines included


@dataclass(frozen=True)
class Config:
    """A whole run."""

    run: RunConfig = field(default_factory=RunConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    rollout: RolloutConfig = field(default_factory=RolloutConfig)
    reward: RewardConfig = field(default_factory=RewardConfig)
    replay: ReplayConfig = field(default_factory=ReplayConfig)
    algorithm: AlgorithmConfig = field(default_factory=AlgorithmConfig)
    rethinking: RethinkingConfig = field(default_factory=RethinkingConfig)
    learner: LearnerConfig = field(default_factory=LearnerConfig)
    weights: WeightsConfig = field(default_factory=WeightsConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    supervision: SupervisionConfig = field(default_factory=SupervisionConfig)
    guard: GuardConfig = field(default_factory=GuardConfig)
    coldstart: ColdstartConfig = field(default_factory=ColdstartConfig)
    report: ReportConfig = field(default_factory=ReportConfig)
    cluster: ClusterConfig = field(default_factory=ClusterConfig)
