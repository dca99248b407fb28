"""Settings of every benchmark: one dataclass each. Importing them loads no torch, so `--help` is quick."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class BlendBenchmark:
    """Priority order, packing and blend building; about 2 minutes on 2 cores, with `full` about 15."""

    full: bool = False
    """The sizes of the project's targets (1e8 draws, 1e9 for single blocks) instead of a tenth."""
    device: str = "cpu"
    """cpu, or cuda for the GPU kernel, by itself and end to end."""
    repeats: int = 5
    """Timings of each."""


@dataclass
class CurateBenchmark:
    """Duplicates and merge of generated passages by the million; 2 kB of disk a passage. 20 million take about 20 minutes."""

    passages: list[int] = field(default_factory=lambda: [1_000_000, 2_000_000, 4_000_000])
    """Sizes of the corpora, the smallest first."""
    directory: str | None = None
    """Where to work; null: the system's temporary folder."""


@dataclass
class UnifyBenchmark:
    """Passages to pairs through an endpoint that answers at once; about 3 minutes on 2 cores, one of which the endpoint uses."""

    documents: int = 2000
    """Passages of 230 characters, two requests each."""
    repeats: int = 3
    """Timings of each."""


@dataclass
class IndexBenchmark:
    """Tokenising conversations into an index; about 100 s on 2 cores."""

    tokenizer: str | None = None
    """Directory or file of a tokenizer; null: one trained on the sample."""
    megabytes: float = 24
    """Size of the JSON Lines file."""
    repeats: int = 5
    """Timings of each."""
    workers: int | None = None
    """Processes; null: one per core."""


@dataclass
class LoaderBenchmark:
    """Rows of a blend to batches, by one thread."""

    rows: int = 200
    """Rows of 4,096 tokens in one timing."""
    repeats: int = 5
    """Timings of each."""


@dataclass
class ConvertBenchmark:
    """Hugging Face directories to checkpoints and back, against plain copies; the defaults write about 160 GB."""

    gigabytes: float = 4.0
    """bf16 weights, 1 or more."""
    repeats: int = 5
    """Timings of each."""
    directory: str | None = None
    """Where to work (about twice the weights); null: the system's temporary folder."""
    shapes: list[str] = field(default_factory=list)
    """Presets whose shapes are converted in turn with Llama-2-7B's, and nothing else: their rates over Llama's."""


@dataclass
class TrainBenchmark:
    """Training steps, ours and the peer's in turn, in tokens per second."""

    size: str = "small"
    """toy or small for CPUs, 7b-cut for one large GPU."""
    ranks: int = 2
    """Data-parallel ranks."""
    steps: int = 4
    """Optimizer steps of one timing."""
    repeats: int = 5
    """Timings of each."""
    device: str = "auto"
    """auto, cpu or cuda."""


@dataclass
class StartBenchmark:
    """Seconds from the imports to the first step of a toy model over many documents, every byte hashed and not."""

    documents: int = 5_713_052
    """Of nine sources, with log-normal lengths of 280 tokens in the mean, in rows of 4,096."""
    ranks: int = 2
    """Data-parallel ranks on the CPU, one row each."""
    repeats: int = 5
    """Runs of each kind, taking turns."""
    directory: str | None = None
    """Where to work, 1.2 kB per document (6.6 GB with the default); null: the system's temporary folder."""


@dataclass
class SaveBenchmark:
    """Stalls of saves that are written in the background against those of synchronous ones."""

    gigabytes: float = 1.2
    """About so much state, weights and optimizer."""
    saves: int = 3
    """Of each way, after one that is not counted."""
    ranks: int = 2
    """Data-parallel ranks on the CPU."""
    directory: str | None = None
    """Where checkpoints go (twice the state); null: the system's temporary folder."""


@dataclass
class GoodputBenchmark:
    """Effective time of a long run at Llama 3's failure rate: real kills of a toy run on 2 CPU ranks, half a minute each."""

    gpus: int = 512
    """Of the run that is replayed."""
    days: float = 54.0
    """Of that run."""
    step_s: float = 7.06
    """Its step; the default is 34B on 512 H100, 4 rows per GPU, as planned (docs/scaling.md)."""
    save_interval: int = 500
    """Its steps between saves."""
    start_s: float = 300.0
    """Assumed: what its starts take longer than the toy's (imports, process groups and weights of all ranks)."""
    seed: int = 4
    """Of the failures; the default draws 14, where 14.6 are expected."""


@dataclass
class SweepBenchmark:
    """Layouts, micro-batches and recomputation, or numbers of ranks, each a short training run in processes of its own.

    Cases that run out of memory or time are recorded, and the next one starts. `--directory` gets sweep.md, sweep.png,
    sweep.json, and the configuration and output of every case."""

    config: str | None = None
    """Training configuration that cases change; null: the toy model on the bundled sample."""
    cases: str | None = None
    """YAML list of {name, ranks, section: {key: value}}; null: the plan's best layouts, or with `scaling` one per number of ranks."""
    best: int = 10
    """How many of the plan's layouts."""
    gpu: str = "h100"
    """What the plan ranks layouts for."""
    scaling: str | None = None
    """strong: `ranks` in turn with the same global batch; weak: with a global batch that grows with them."""
    ranks: list[int] = field(default_factory=lambda: [2])
    """Ranks of all nodes together; the first one is that of layouts."""
    ranks_per_node: int = 8
    """Of which so many on a node."""
    warm_up: int = 3
    """Steps that are not counted."""
    steps: int = 10
    """Steps whose median counts."""
    minutes: float = 20.0
    """Time of one case, its start included."""
    launch: str | None = None
    """Command that starts the ranks, in which {config}, {ranks}, {nodes}, {ranks_per_node}, {python} and {train} (the path of
    tools/train.py) are filled in. null: torchrun on this machine; examples/slurm/sweep.sbatch has that of Slurm."""
    directory: str | None = None
    """Where results go; null: a new temporary folder, named at the end."""


BENCHMARKS: dict[str, type] = {
    "blend": BlendBenchmark,
    "curate": CurateBenchmark,
    "unify": UnifyBenchmark,
    "index": IndexBenchmark,
    "loader": LoaderBenchmark,
    "convert": ConvertBenchmark,
    "train": TrainBenchmark,
    "start": StartBenchmark,
    "save": SaveBenchmark,
    "goodput": GoodputBenchmark,
    "sweep": SweepBenchmark,
}
"""By name; `benchmarks/NAME.py` has `run(settings)`."""
