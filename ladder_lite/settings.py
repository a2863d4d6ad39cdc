"""What a recipe says: frozen pydantic models, one for each of its sections.

Every setting is required. Settings that TRL and peft already name keep those names: `grpo.trl` and `ttrl.trl` hold
settings of trl.GRPOConfig, `model.lora` of peft.LoraConfig. They are checked against trl_settings.json, so that reading
a recipe imports neither. How a file becomes a `Recipe` is told in `ladder_lite.config`.
"""

import json
import string
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, JsonValue, field_validator
from pydantic.annotated_handlers import GetCoreSchemaHandler
from pydantic_core import CoreSchema, core_schema
from pydantic_core.core_schema import ValidationInfo

from ladder_lite.deadline import read_budget

EMBEDDED = "embedded"  # the `model.id` of the model that comes with the package
Condition = Literal["base", "rl_without_variants", "ladder", "ladder_ttrl"]
_Number = TypeVar("_Number", int, float)


def _on_record() -> dict[str, dict[str, dict[str, Any]]]:
    """The settings of TRL and peft as this package was written for: by class, by name, types and default."""
    path = Path(__file__).with_name("trl_settings.json")
    record: dict[str, dict[str, dict[str, Any]]] = json.loads(path.read_text(encoding="utf-8"))
    return record


def grpo_config_defaults() -> dict[str, Any]:
    """TRL's default of every setting of GRPOConfig, as it was when the list was made."""
    return {name: field["default"] for name, field in _on_record()["GRPOConfig"].items()}


class LibrarySettings:
    """Field metadata: a mapping of settings under the names and types a library gives them."""

    def __init__(self, owner: Literal["GRPOConfig", "LoraConfig"]) -> None:
        self.types: dict[str, list[str]] = {name: field["types"] for name, field in _on_record()[owner].items()}

    def __get_pydantic_core_schema__(self, source: object, handler: GetCoreSchemaHandler) -> CoreSchema:
        fields = {
            name: core_schema.typed_dict_field(
                core_schema.union_schema(
                    [_JSON_TYPES[type_] for type_ in types],
                    custom_error_type="setting_type",
                    custom_error_message="must be " + " or ".join(types),
                ),
                required=False,
            )
            for name, types in self.types.items()
        }
        return core_schema.typed_dict_schema(fields, extra_behavior="forbid")


_JSON_TYPES: dict[str, CoreSchema] = {
    "bool": core_schema.bool_schema(strict=True),
    "int": core_schema.int_schema(strict=True),
    "float": core_schema.float_schema(strict=True, allow_inf_nan=False),
    "str": core_schema.str_schema(strict=True),
    "list": core_schema.list_schema(strict=True),
    "dict": core_schema.dict_schema(strict=True),
    "null": core_schema.none_schema(),
}


def _ordered(bounds: tuple[_Number, _Number]) -> tuple[_Number, _Number]:
    if bounds[0] > bounds[1]:
        raise ValueError("must be [lowest, highest]")
    return bounds


# What the training loop sets itself (ladder_lite.trainer): with other values, steps, rollouts and rows would not match.
_OURS = {
    *("output_dir", "seed", "use_cpu", "bf16", "fp16", "logging_steps", "logging_strategy", "logging_nan_inf_filter"),
    *("disable_tqdm", "save_strategy", "save_total_limit", "ignore_data_skip", "dataloader_num_workers"),
    *("num_iterations", "steps_per_generation", "generation_batch_size", "remove_unused_columns", "top_k", "min_p"),
    *("repetition_penalty", "generation_kwargs", "use_vllm", "vllm_mode", "vllm_importance_sampling_correction"),
    *("auto_find_batch_size", "eval_strategy", "load_best_model_at_end", "push_to_hub"),
}


_LOSS_TYPES = ("grpo", "dr_grpo", "dapo", "bnpo", "cispo", "sapo", "luspo", "vespo")


def _not_ours(trl: dict[str, Any]) -> dict[str, Any]:
    if taken := sorted(_OURS.intersection(trl)):
        raise ValueError(f"must leave out {', '.join(taken)}: the training loop sets it")
    return trl


def _of_a_language_model(lora: dict[str, Any]) -> dict[str, Any]:
    if taken := sorted({"task_type", "inference_mode"}.intersection(lora)):
        raise ValueError(f"must leave out {', '.join(taken)}: the loader sets it")
    return lora


Count = Annotated[int, Field(gt=0)]
Depth = Annotated[int, Field(ge=1, le=5)]
Fraction = Annotated[float, Field(ge=0, le=1)]
NonNegative = Annotated[float, Field(ge=0)]
Positive = Annotated[float, Field(gt=0)]
CountRange = Annotated[tuple[Annotated[int, Field(ge=0)], Annotated[int, Field(ge=0)]], AfterValidator(_ordered)]
TemperatureRange = Annotated[tuple[Positive, Positive], AfterValidator(_ordered)]
GrpoConfigSettings = Annotated[dict[str, Any], LibrarySettings("GRPOConfig"), AfterValidator(_not_ours)]
LoraConfigSettings = Annotated[dict[str, Any], LibrarySettings("LoraConfig"), AfterValidator(_of_a_language_model)]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False, protected_namespaces=())


_VARIANT_FIELDS = ("integral", "integrand", "variable", "persona", "suggestions", "count")
_PROMPT_FIELDS = {
    "solve": ("integral", "integrand", "variable"),
    "easier": _VARIANT_FIELDS,
    "equivalent": _VARIANT_FIELDS,
    "transformations": ("effect", "count"),
}


class Example(_Section):
    """A question and its answer, shown to the model as turns of the conversation."""

    user: str
    assistant: str


class Prompts(_Section):
    """Templates in str.format style; `system` is sent as it is, or not at all when null.

    `{integral}` is the whole integral as a call, or as the exam prints it; `transformations` is null for a model that
    cannot write a library of them. The examples, which may be none, stand before each question of their kind.
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
    def _only_known_fields(cls, template: str | None, info: ValidationInfo) -> str | None:
        if template is None:
            return None
        fields = _PROMPT_FIELDS[info.field_name or ""]
        listing = ", ".join(f"{{{field}}}" for field in fields)
        try:
            used = {field for _, field, _, _ in string.Formatter().parse(template) if field is not None}
            template.format(**dict.fromkeys(fields, ""))
        except (ValueError, LookupError, AttributeError) as error:
            raise ValueError(f"must use no fields but {listing} and double its literal braces: {error}") from error
        if fields[0] not in used and not ("integral" in fields and "integrand" in used):
            raise ValueError(f"must contain {{{fields[0]}}}")
        return template


class Select(_Section):
    """Which problems of a pool an experiment is about: those that the base model fails in all of `samples` tries.

    `train` and `test` are how many are drawn of them for each split.
    """

    samples: Count
    train: Count
    test: Count


class TaskSettings(_Section):
    """What is to be learned: the problem sets, how answers are verified, what the model is asked.

    With `select`, `train` and `test` name the same set, the pool that both splits are drawn from. A reply to a problem
    ends with the first of the `stop` texts, in training as in evaluation. `thinking` is for models whose chat template
    opens `<think>`: a reply then begins with thoughts, and nothing is read of it before `</think>`.
    """

    name: Literal["integration"]
    train: str
    test: str
    select: Select | None
    protocol: Literal["strict", "paper"]
    stop: tuple[Annotated[str, Field(min_length=1)], ...]
    thinking: bool
    prompts: Prompts

    @field_validator("select")
    @classmethod
    def _from_one_pool(cls, select: Select | None, info: ValidationInfo) -> Select | None:
        if select is not None and info.data.get("train") != info.data.get("test"):
            raise ValueError("must be null unless task.train and task.test name the same set, the pool")
        return select


class ModelSettings(_Section):
    """The base model and the adapter trained on it.

    `id` is "embedded", a local folder, a GGUF file or an id of the Hugging Face hub; `mirror` an ungated copy on the
    hub, named where the hub refuses the id. `max_prompt_length` counts tokens of what asks for a solution: a longer
    one is refused, and memory is predicted with it. `fast_inference` is Unsloth's vLLM, which has not been run with
    this package.
    """

    id: str
    mirror: str | None
    backend: Literal["auto", "unsloth", "transformers"]
    dtype: Literal["auto", "float32", "bfloat16", "float16"]
    load_in_4bit: bool
    fast_inference: bool
    max_prompt_length: Count
    lora: LoraConfigSettings


class Mix(_Section):
    """Shares of the requests that ask for easier and for equivalent variants."""

    easier: Fraction
    equivalent: Fraction

    @field_validator("equivalent")
    @classmethod
    def _sums_to_one(cls, equivalent: float, info: ValidationInfo) -> float:
        if "easier" in info.data and abs(info.data["easier"] + equivalent - 1) > 1e-6:
            raise ValueError(f"must be 1 - easier, and easier is {info.data['easier']:g}")
        return equivalent


class Transformations(_Section):
    """The library of changes to an integral, by effect, from which each request suggests some."""

    easier: tuple[str, ...]
    equivalent: tuple[str, ...]


def _known_source(source: str) -> str:
    if source not in ("model", "default") and not source.endswith(".json"):
        raise ValueError("must be model, default, the path of a library.json, or lists")
    return source


LibrarySource = Annotated[str, AfterValidator(_known_source)]


class Adaptive(_Section):
    """A tree that begins with `start` variants a root, and grows while training runs.

    After every `every` steps, `requests` requests go to problems that the model never solves, until there are
    `per_root` variants for each root.
    """

    start: Count
    every: Count
    requests: Count


class VariantSettings(_Section):
    """The variant tree of each root problem; `adaptive: null` is the paper's, grown before training."""

    per_root: Count
    depth: Depth
    per_prompt: Count
    suggestions: CountRange
    mix: Mix
    temperature: TemperatureRange
    personas: Annotated[tuple[str, ...], Field(min_length=1)]
    transformations: Transformations | LibrarySource
    max_new_tokens: Count
    batch_size: Count
    equal_up_to_factor: bool
    adaptive: Adaptive | None

    @field_validator("adaptive")
    @classmethod
    def _has_room_to_grow(cls, adaptive: Adaptive | None, info: ValidationInfo) -> Adaptive | None:
        if adaptive is not None and adaptive.start > info.data.get("per_root", adaptive.start):
            raise ValueError(f"must have a start of at most variants.per_root, which is {info.data['per_root']}")
        return adaptive

    @field_validator("transformations")
    @classmethod
    def _enough_to_suggest(cls, library: Transformations | str, info: ValidationInfo) -> Transformations | str:
        if isinstance(library, Transformations) and "suggestions" in info.data and "mix" in info.data:
            needed = info.data["suggestions"][1]
            for kind in ("easier", "equivalent"):
                if getattr(info.data["mix"], kind) > 0 and len(getattr(library, kind)) < needed:
                    raise ValueError(f"{kind} must list at least {needed}, the most that variants.suggestions asks for")
        return library


class Plateau(_Section):
    """Training ends early once fewer than `min_signal` of the groups of `patience` steps had unequal rewards."""

    patience: Count
    min_signal: Fraction


class GrpoSettings(_Section):
    """GRPO: how rows are drawn, the format reward, when to look at the test problems, TRL's own settings."""

    rows: Literal["pass_rate", "uniform"]
    format_reward: NonNegative
    eval_every: Count
    plateau: Plateau | None
    trl: GrpoConfigSettings

    @property
    def completions_per_step(self) -> int:
        """Completions that one optimizer step learns from, in however many portions."""
        return int(self.trl["per_device_train_batch_size"] * self.trl.get("gradient_accumulation_steps", 1))

    @field_validator("trl")
    @classmethod
    def _trains(cls, trl: dict[str, Any]) -> dict[str, Any]:
        return _can_train(trl)


def _can_train(trl: dict[str, Any]) -> dict[str, Any]:
    """ValueError for settings of which TRL would say, once a model is loaded and asked, that it cannot train so."""
    needed = ("max_steps", "num_generations", "per_device_train_batch_size", "max_completion_length")
    if missing := sorted(name for name in needed if not trl.get(name)):
        raise ValueError(f"must set {', '.join(missing)}")
    counts = (*needed, "gradient_accumulation_steps", "save_steps")
    if wrong := sorted(name for name in counts if (trl.get(name) or 1) <= 0):
        raise ValueError(f"must have a {wrong[0]} above 0")
    if trl["num_generations"] < 2:
        raise ValueError("must have num_generations of 2 or more: answers are compared within a group")
    completions = trl["per_device_train_batch_size"] * trl.get("gradient_accumulation_steps", 1)
    if completions % trl["num_generations"]:
        raise ValueError(
            f"must have a batch (per_device_train_batch_size times gradient_accumulation_steps, {completions}) that "
            f"num_generations, {trl['num_generations']}, divides"
        )
    if trl.get("loss_type", "dapo") not in _LOSS_TYPES:
        raise ValueError(f"must have a loss_type of {', '.join(_LOSS_TYPES)}")
    return trl


class EvalSettings(_Section):
    """Sampling of answers to the test problems."""

    samples: Count
    k: Count
    temperature: NonNegative
    top_p: Annotated[float, Field(gt=0, le=1)]
    max_new_tokens: Count
    batch_size: Count

    @field_validator("k")
    @classmethod
    def _within_samples(cls, k: int, info: ValidationInfo) -> int:
        if k > info.data.get("samples", k):
            raise ValueError(f"must be at most eval.samples, which is {info.data['samples']}")
        return k


def _readable(budget: str) -> str:
    try:
        read_budget(budget)
    except ValueError as error:
        raise ValueError(f"must be a time: {error}") from error
    return budget


class TtrlSettings(_Section):
    """Test-time RL on problems left unsolved; `trl` overrides grpo.trl.

    `budget` is the time that tree and training of one problem may take, such as "10m". With `stop_when_solved` the
    verifier's verdict on the test problem ends training, which is the paper's rule; without, it decides nothing.
    """

    problems: Annotated[int, Field(ge=0)] | Literal["all"]
    order: Literal["listed", "shuffled"]
    per_root: Count
    depth: Depth
    max_steps: Count
    budget: Annotated[str, AfterValidator(_readable)] | None
    samples_per_step: Count
    stop_when_solved: bool
    trl: GrpoConfigSettings

    def over(self, grpo: GrpoSettings) -> GrpoSettings:
        """The settings that single problems are trained with."""
        return grpo.model_copy(update={"trl": grpo.trl | {"max_steps": self.max_steps} | self.trl})


class Recipe(_Section):
    """One experiment, complete. The run folder holds it as it was resolved."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")]  # it names the run folder
    description: str
    seed: Annotated[int, Field(ge=0, lt=2**32)]  # NumPy takes no larger one
    task: TaskSettings
    model: ModelSettings
    conditions: Annotated[tuple[Condition, ...], Field(min_length=1)]
    variants: VariantSettings
    grpo: GrpoSettings
    eval: EvalSettings
    ttrl: TtrlSettings
    profiles: dict[Annotated[str, Field(pattern=r"^[a-z][a-z0-9_-]*$")], dict[str, JsonValue]]  # --profile NAME
    smoke: dict[str, JsonValue]

    @field_validator("variants")
    @classmethod
    def _library_can_be_asked_for(cls, variants: VariantSettings, info: ValidationInfo) -> VariantSettings:
        task = info.data.get("task")
        if variants.transformations == "model" and task is not None and task.prompts.transformations is None:
            raise ValueError("must not have transformations: model while task.prompts.transformations is null")
        return variants

    @field_validator("ttrl")
    @classmethod
    def _trains_too(cls, ttrl: TtrlSettings, info: ValidationInfo) -> TtrlSettings:
        if "grpo" in info.data:
            try:
                _can_train(ttrl.over(info.data["grpo"]).trl)
            except ValueError as error:
                raise ValueError(f"{error}; that is with grpo.trl, which ttrl.trl changes") from error
        return ttrl

    @field_validator("conditions")
    @classmethod
    def _unique(cls, conditions: tuple[Condition, ...]) -> tuple[Condition, ...]:
        if len(set(conditions)) < len(conditions):
            raise ValueError("must not name a condition twice")
        return conditions
