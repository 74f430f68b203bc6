"""What is measured of a model while it is trained: validation loss, HellaSwag, samples."""

import math
from collections.abc import Callable, Iterator, Sequence

from ..dataset.directory import Dataset
from ..dataset.mixture import Portion
from ..dataset.validation import refuse_too_short, validation_sequences
from ..distributed import World
from ..evaluate.hellaswag import score
from ..evaluate.inference import NotFinite
from ..evaluate.questions import Questions, load_questions
from ..evaluate.text import Sampling, next_tokens, validation_loss
from ..model import GPT2, GPT2Config
from ..rows import Metrics, Sample
from ..tokenizer import Tokenizer, load_tokenizer
from ..train.loop import Evaluate
from ..train.signals import Each
from .settings import Config

EVALUATION_SEQUENCES = 16  # of one forward pass over validation text, at most


def mean_of_shares(values: Sequence[float | None], portions: Sequence[Portion]) -> float | None:
    """The mean of the datasets' values, weighted by what they have of a step, over those that have a value."""
    pairs = [(len(p.slots), value) for p, value in zip(portions, values, strict=True) if value is not None]
    if len(pairs) == 1:
        return pairs[0][1]  # as it is: a product and a quotient could round
    return sum(slots * value for slots, value in pairs) / sum(slots for slots, _ in pairs) if pairs else None


def _validation_loss(model: GPT2, dataset: Dataset, settings: Config, world: World, each: Each) -> float | None:
    if not dataset.shards("val"):
        return None
    batches = validation_sequences(
        dataset,
        seq_len=settings.data.seq_len,
        max_tokens=settings.eval.val_tokens,
        # Where a micro-batch fits, so does this.
        batch_sequences=min(EVALUATION_SEQUENCES, settings.train.micro_batch_sequences),
        rank=world.rank,
        world_size=world.world_size,
    )
    return validation_loss(model, each(batches), world, settings.train.dtype)


def _samples(
    model: GPT2, tokenizer: Tokenizer, settings: Config, world: World, say: Callable[[str], None]
) -> Iterator[Sample | None]:
    """A sample of each prompt, and None for each token before it. Numbers that are not finite end it with a warning."""
    sampling = Sampling(settings.eval.sample_tokens, seed=settings.run.seed)
    try:
        for prompt in settings.eval.sample_prompts:
            found: list[int] = []
            for token in next_tokens(model, tokenizer, prompt, sampling, device=world.device):
                found.append(token)
                yield None
            yield {"prompt": prompt, "text": prompt + tokenizer.decode(found)}
    except NotFinite as error:
        say(f"WARNING: {error}")


def evaluation(
    settings: Config,
    portions: Sequence[Portion],
    choices: Dataset | None,
    config: GPT2Config,
    world: World,
    say: Callable[[str], None],
) -> Evaluate:
    """What is measured every eval.every_steps: validation loss, HellaSwag, samples; each where there is something.

    Of several datasets each has its own validation loss, on as much text as if it were alone, and `val_loss` is their
    mean, weighted by what each has of a step: as the training loss is of them. None stands for a dataset without text.
    """
    for portion in portions:
        if portion.dataset.shards("val"):
            refuse_too_short(portion.dataset, seq_len=settings.data.seq_len, max_tokens=settings.eval.val_tokens)
    questions: Questions | None = None
    if choices is not None:
        questions = load_questions(choices, settings.eval.hellaswag_mode, config.n_positions)
    tokenizer = load_tokenizer() if settings.eval.sample_prompts else None

    def evaluate(model: GPT2, each: Each) -> Metrics:
        model.eval()
        metrics: Metrics = {}
        losses = [_validation_loss(model, portion.dataset, settings, world, each) for portion in portions]
        if (mean := mean_of_shares(losses, portions)) is not None:
            metrics["val_loss"] = mean
        if mean is not None and len(losses) > 1:
            metrics["val_losses"] = losses
            pairs = zip(portions, losses, strict=True)
            named = [f"{portion.dataset.path} {loss:.4f}" for portion, loss in pairs if loss is not None]
            say(f"validation loss of {', '.join(named)}")
        try:
            if questions is not None:
                metrics["hella_acc"] = math.nan
                metrics["hellaswag"] = score(model, questions, world, settings.train.dtype, each=each)
                metrics["hella_acc"] = metrics["hellaswag"]["acc_norm_tokens"]
            if tokenizer is not None:
                # The main rank makes them; the others have no share, and ask with it until it has made them.
                share = _samples(model, tokenizer, settings, world, say) if world.is_main else iter(())
                if samples := [sample for sample in each(share) if sample]:
                    metrics["samples"] = samples
        except NotFinite as error:
            say(f"WARNING: {error}")
        model.train()
        return metrics

    return evaluate
