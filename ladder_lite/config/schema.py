"""The schema of a recipe: one frozen pydantic model per section.

Settings are required unless all shipped recipes agree on a value that is not part of the science, or the default turns
a feature off. Settings of TRL and peft keep their names: `grpo.trl` and `ttrl.trl` hold those of trl.GRPOConfig,
`model.lora` those of peft.LoraConfig. `trl_settings` checks them without importing either library.
"""

import string
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, JsonValue, field_validator
from pydantic_core.core_schema import ValidationInfo

from ladder_lite.budget import read_budget
from ladder_lite.config.conditions import BUILT_IN, is_of_ttrl
from ladder_lite.config.trl_settings import TRL_DEFAULTS, GrpoConfigSettings, LoraConfigSettings, trainable
from ladder_lite.errors import nearest

EMBEDDED = "embedded"  # the `model.id` of the model shipped with the package


def model_name(model_id: str) -> str:
    """Return a `model.id` for people: of a path, such as /models/llama or a/b/c.gguf, only its last part."""
    path = Path(model_id)
    return path.name if len(path.parts) > 2 else model_id  # "org/name" is one of the hub


def _ordered(bounds: tuple[float, float]) -> tuple[float, float]:
    if bounds[0] > bounds[1]:
        raise ValueError("must be [lowest, highest]")
    return bounds


Count = Annotated[int, Field(gt=0)]
Depth = Annotated[int, Field(ge=1, le=5)]
Fraction = Annotated[float, Field(ge=0, le=1)]
NonNegative = Annotated[float, Field(ge=0)]
Positive = Annotated[float, Field(gt=0)]
CountRange = Annotated[tuple[Annotated[int, Field(ge=0)], Annotated[int, Field(ge=0)]], AfterValidator(_ordered)]
TemperatureRange = Annotated[tuple[Positive, Positive], AfterValidator(_ordered)]


class _Section(BaseModel):
    # Strict: a recipe that says "10" for a number, or misspells a setting, is refused rather than guessed at.
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False, protected_namespaces=())


class Example(_Section):
    """A question and its answer, shown to the model as two turns of the conversation."""

    user: str
    assistant: str


class Prompts(_Section):
    """Prompt templates in `str.format` style; `system` is sent verbatim, or not at all if null.

    The task decides which placeholders `solve`, `easier` and `equivalent` may use; the last two also have {persona},
    {suggestions} and {count}. `transformations` must contain {effect} and may contain {count}; it is null for a model
    that cannot write its own library. Examples precede each question of their kind.
    """

    system: str | None
    solve_examples: tuple[Example, ...]
    variant_examples: tuple[Example, ...]
    solve: str
    easier: str
    equivalent: str
    transformations: str | None

    @field_validator("solve", "easier", "equivalent", "transformations")
    @classmethod
    def _only_plain_placeholders(cls, template: str | None, info: ValidationInfo) -> str | None:
        if template is None:
            return None
        try:
            parts = [part for part in string.Formatter().parse(template) if part[1] is not None]
        except ValueError as error:
            raise ValueError(f"must double its literal braces: {error}") from error
        # Names alone: {problem.data} would reach into an object, and {problem:d} fails for a text.
        used = {str(name) for _, name, _, _ in parts}
        if others := [name for _, name, *formats in parts if not str(name).isidentifier() or any(formats)]:
            raise ValueError(f"must double its literal braces: {{{others[0]}}} is not a plain placeholder")
        # Those of the other templates are the task's, which checks them when it is made (`Task.check_prompts`).
        if info.field_name == "transformations" and not {"effect"} <= used <= {"effect", "count"}:
            raise ValueError("must contain {effect} and no placeholder but {effect} and {count}")
        return template


class Select(_Section):
    """Select problems that the base model fails in all of `samples` tries; draw `train` and `test` of them."""

    samples: Count
    train: Count
    test: Count


def _from_one_pool(select: Select | None, info: ValidationInfo) -> Select | None:
    if select is not None and info.data.get("train") != info.data.get("test"):
        raise ValueError("must be null unless task.train and task.test name the same set, the pool")
    return select


class TaskSettings(_Section):
    """The task, its problem sets, how answers are verified, and what the model is asked.

    `name` is a task of this package, `reasoning_gym:NAME`, the entry point of another package, or a class of your own
    (`my_module:MyTask`, `my_task.py:MyTask`). `protocol` is the rule of integration's verifier.

    With `select`, both splits are drawn from one pool, and `train` and `test` must both name it. A reply ends at the
    first of the `stop` texts, in training and in evaluation. Set `thinking` for models whose chat template opens
    `<think>`: everything before `</think>` is then ignored. `probe` is a problem set that each evaluated model answers
    besides the test set; with `ttrl.probe_every`, TTRL's models answer it as well. Its rows have a technique, and the
    report shows which of them training gains or loses.
    """

    name: str = "integration"
    train: str
    test: str
    probe: str | None = None
    select: Annotated[Select | None, AfterValidator(_from_one_pool)] = None
    protocol: Literal["strict", "paper"] = "strict"
    stop: tuple[Annotated[str, Field(min_length=1)], ...] = ()
    thinking: bool = False
    prompts: Prompts


class ModelSettings(_Section):
    """The base model and the adapter trained on it.

    `id` is "embedded", a local folder, a GGUF file or a Hugging Face hub id. `mirror` is an ungated copy on the hub,
    suggested if the hub refuses access to `id`. `max_prompt_length` limits the prompts that ask for a solution, in
    tokens; longer ones are refused, and the memory prediction uses it. `device: auto` is the GPU if PyTorch can use
    one; with `cuda`, runs refuse to start without a GPU. `engine` samples the replies: `lean`, this package's
    loop, for models with full attention, `generate` of transformers for all, or Unsloth's `vllm`, which has never been
    run with this package. `auto` is `lean` if it supports the model and the loader, else `generate`.
    """

    id: str
    mirror: str | None = None
    backend: Literal["auto", "unsloth", "transformers"]
    device: Literal["auto", "cuda", "cpu"] = "auto"
    dtype: Literal["auto", "float32", "bfloat16", "float16"]
    load_in_4bit: bool
    engine: Literal["auto", "lean", "generate", "vllm"] = "auto"
    max_prompt_length: Count
    lora: LoraConfigSettings


def _sums_to_one(equivalent: float, info: ValidationInfo) -> float:
    if "easier" in info.data and abs(info.data["easier"] + equivalent - 1) > 1e-6:
        raise ValueError(f"must be 1 - easier, and easier is {info.data['easier']:g}")
    return equivalent


class Mix(_Section):
    """Fractions of the requests that ask for easier and for equivalent variants; they sum to 1."""

    easier: Fraction
    equivalent: Annotated[Fraction, AfterValidator(_sums_to_one)]


class Transformations(_Section):
    """Names of changes to a problem, by effect; each request for variants suggests a few of them."""

    easier: tuple[str, ...]
    equivalent: tuple[str, ...]


def _known_source(library: Transformations | str, info: ValidationInfo) -> Transformations | str:
    if isinstance(library, str):
        if library not in ("model", "default") and not library.endswith(".json"):
            raise ValueError("must be model, default, the path of a library.json, or lists")
    elif "suggestions" in info.data and "mix" in info.data:
        needed = info.data["suggestions"][1]
        for kind in ("easier", "equivalent"):
            if getattr(info.data["mix"], kind) > 0 and len(getattr(library, kind)) < needed:
                raise ValueError(f"{kind} must list at least {needed}, the most that variants.suggestions asks for")
    return library


class Adaptive(_Section):
    """Grow the variant tree during training, from `start` variants per root up to `per_root`.

    Every `every` steps, `requests` requests for variants go to the problems that the model never solves.
    """

    start: Count
    every: Count
    requests: Count


def _of_a_whole_tree(third: str | None, info: ValidationInfo) -> str | None:
    if third is not None and info.data.get("adaptive") is not None:
        raise ValueError("must be null unless variants.adaptive is null: the tree must be complete before training")
    return third


class VariantSettings(_Section):
    """The variant tree of each root problem. With `adaptive: null` it is complete before training, as in the paper.

    With `third`, training uses only a third of each root's variants: those whose statements are nearest to the root's
    or farthest from it (see `problems.similarity`), or the longest ones.
    """

    per_root: Count
    depth: Depth
    per_prompt: Count
    suggestions: CountRange
    mix: Mix
    temperature: TemperatureRange
    personas: Annotated[tuple[str, ...], Field(min_length=1)]
    transformations: Annotated[Transformations | str, AfterValidator(_known_source)]
    max_new_tokens: Count
    batch_size: Count
    equal_up_to_factor: bool = False  # True: 2*sin(x) is a duplicate of sin(x)
    adaptive: Adaptive | None = None
    third: Annotated[Literal["nearest", "farthest", "longest"] | None, AfterValidator(_of_a_whole_tree)] = None

    @property
    def first_per_root(self) -> int:
        """Variants per root before training starts."""
        return min(self.adaptive.start, self.per_root) if self.adaptive else self.per_root


class Plateau(_Section):
    """Stop training when less than `min_signal` of the groups of the last `patience` steps had unequal rewards."""

    patience: Count
    min_signal: Fraction


class Refill(_Section):
    """Replace groups whose first `pilot` rewards are equal, with at most `limit` times the rollouts of a step."""

    pilot: Annotated[int, Field(ge=2)]
    limit: Annotated[float, Field(ge=1)]


class BaseRollouts(_Section):
    """In each step, let the base model try `rows` problems that the model fails, `samples` times each.

    These are problems whose last eight answers were wrong, or whose estimated pass rate is below 5 %. It tries the
    shortest ones first, and each one in a single step. Its right answers are replayed.
    """

    rows: Count
    samples: Count


class GrpoSettings(_Section):
    """GRPO: how rows are drawn, which rollouts are trained on, rewards, test evaluations, and TRL's settings.

    `downsample_from` completions are sampled for each group (null, or fewer: `num_generations`), and those whose
    rewards vary most are trained on. With `replay`, half of a group without a right answer becomes an earlier
    one, if there is one. `eval_every` is the interval of test evaluations in steps.

    `rows: staged` draws by pass rate from the shortest third of the problems, then from the middle third, then from the
    longest, each for a third of the steps. `reward` is 1 for a right answer (`verifier`), or, as controls, for any
    answer that can be read (`format`), or for half of the replies, drawn at random (`random`). Pass rates are then
    shares of such rewards.
    """

    rows: Literal["pass_rate", "uniform", "staged"]
    reward: Literal["verifier", "format", "random"] = "verifier"
    refill: Refill | None = None
    downsample_from: Count | None = None
    replay: bool = False
    base_rollouts: BaseRollouts | None = None
    format_reward: Annotated[float, Field(ge=0, lt=1)]
    eval_every: Count
    plateau: Plateau | None = None
    trl: Annotated[GrpoConfigSettings, AfterValidator(lambda trl: trainable(TRL_DEFAULTS | trl))]

    @property
    def completions_per_step(self) -> int:
        """Completions per optimizer step, whatever the micro-batch."""
        return int(self.trl["per_device_train_batch_size"] * self.trl.get("gradient_accumulation_steps", 1))

    @property
    def most_rollouts_per_step(self) -> int:
        """Completions that may be sampled for an optimizer step; not all of them are trained on."""
        size = int(self.trl["num_generations"])
        per_group = max(size, self.downsample_from or size) * (self.refill.limit if self.refill else 1)
        n_base = self.base_rollouts.rows * self.base_rollouts.samples if self.base_rollouts else 0
        return int(self.completions_per_step / size * per_group) + n_base


def _within_samples(k: int, info: ValidationInfo) -> int:
    if k > info.data.get("samples", k):
        raise ValueError(f"must be at most eval.samples, which is {info.data['samples']}")
    return k


class EvalSettings(_Section):
    """Sampling of answers to the test problems."""

    samples: Count
    k: Annotated[Count, AfterValidator(_within_samples)]
    temperature: NonNegative
    top_p: Annotated[float, Field(gt=0, le=1)]
    max_new_tokens: Count
    batch_size: Count


def _readable(budget: str) -> str:
    read_budget(budget)
    return budget


class TtrlSettings(_Section):
    """Test-time RL on unsolved test problems; `trl` overrides `grpo.trl`, `probe_every` is in steps.

    With `adaptive`, the tree of a problem grows while it is trained on, see `variants.adaptive`. As controls,
    `train_on: problem` trains on the test problem itself, with the verifier's reward, and `other` on variants of
    another test problem, drawn at random.

    `budget` limits the time for the tree and the training of one problem, for instance "10m". With `stop_when_solved`,
    the paper's rule, training ends when the verifier accepts an answer to the test problem; without it, the verdicts on
    the test problem influence nothing.
    """

    problems: Annotated[int, Field(ge=0)] | Literal["all"]
    order: Literal["listed", "shuffled"]
    per_root: Count
    depth: Depth
    max_steps: Count
    budget: Annotated[str, AfterValidator(_readable)] | None = None
    samples_per_step: Count
    probe_every: Count | None = None
    adaptive: Adaptive | None = None
    train_on: Literal["variants", "problem", "other"] = "variants"
    stop_when_solved: bool
    trl: GrpoConfigSettings = Field(default_factory=dict)

    def over(self, grpo: GrpoSettings) -> GrpoSettings:
        """The GRPO settings for a single problem."""
        return grpo.model_copy(update={"trl": grpo.trl | {"max_steps": self.max_steps} | self.trl})


def _of_one_method(changes: dict[str, JsonValue]) -> dict[str, JsonValue]:
    share = changes.get("share", 1)
    if isinstance(share, bool) or not isinstance(share, int | float) or not 0 < share <= 1:
        raise ValueError("must have a share above 0 and up to 1")
    sections = {"ttrl"} if is_of_ttrl(changes) else {"share", "variants", "grpo"}
    if others := [key for key in changes if key.partition(".")[0] not in sections]:
        raise ValueError(f"must change either share, variants.* and grpo.*, or ttrl.* alone; not {others[0]}")
    if changes.get("variants.transformations") == "model":  # the library is written once, for all conditions
        raise ValueError("must not have variants.transformations: model; the recipe can, for all of its conditions")
    return changes


AblationChanges = Annotated[dict[str, JsonValue], AfterValidator(_of_one_method)]


def _not_built_in(ablations: dict[str, dict[str, JsonValue]]) -> dict[str, dict[str, JsonValue]]:
    if taken := sorted(set(BUILT_IN).intersection(ablations)):
        raise ValueError(f"must not name an ablation {taken[0]}: that is a condition of every recipe")
    return ablations


def _known_and_unique(conditions: tuple[str, ...], info: ValidationInfo) -> tuple[str, ...]:
    known = [*BUILT_IN, *info.data.get("ablations", {})]
    if "ablations" in info.data and (unknown := [name for name in conditions if name not in known]):
        hint = nearest(unknown[0], known)
        raise ValueError(f"must name conditions of {', '.join(known)}, and {unknown[0]} is none{hint}")
    if len(set(conditions)) < len(conditions):
        raise ValueError("must not name a condition twice")
    return conditions


def _library_can_be_asked_for(variants: VariantSettings, info: ValidationInfo) -> VariantSettings:
    task = info.data.get("task")
    if variants.transformations == "model" and task is not None and task.prompts.transformations is None:
        raise ValueError("must not have transformations: model while task.prompts.transformations is null")
    return variants


def _trains_too(ttrl: TtrlSettings, info: ValidationInfo) -> TtrlSettings:
    task = info.data.get("task")
    if ttrl.probe_every is not None and task is not None and task.probe is None:
        raise ValueError("must not have probe_every while task.probe is null")
    if "grpo" in info.data:
        try:
            trainable(ttrl.over(info.data["grpo"]).trl)
        except ValueError as error:
            raise ValueError(f"{error}; that is with grpo.trl, which ttrl.trl changes") from error
    return ttrl


AblationName = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$")]


class Recipe(_Section):
    """One experiment. The run folder contains it with all defaults and overrides resolved.

    An ablation is a condition: LADDER with changes to `variants.*` and `grpo.*`, by dotted key, and `share`, the
    fraction of the variants it may use; or TTRL after LADDER with changes to `ttrl.*`. `full` names the conditions that
    `--full` adds.
    """

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")]  # it names the run folder
    description: str
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0  # NumPy's limit
    task: TaskSettings
    model: ModelSettings
    ablations: Annotated[dict[AblationName, AblationChanges], AfterValidator(_not_built_in)]
    conditions: Annotated[tuple[str, ...], Field(min_length=1), AfterValidator(_known_and_unique)]
    full: Annotated[tuple[str, ...], AfterValidator(_known_and_unique)]
    variants: Annotated[VariantSettings, AfterValidator(_library_can_be_asked_for)]
    grpo: GrpoSettings
    eval: EvalSettings
    ttrl: Annotated[TtrlSettings, AfterValidator(_trains_too)]
    profiles: dict[Annotated[str, Field(pattern=r"^[a-z][a-z0-9_-]*$")], dict[str, JsonValue]] = {}  # --profile NAME
    smoke: dict[str, JsonValue]
