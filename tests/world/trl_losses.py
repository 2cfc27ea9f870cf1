"""TRL: the log-probability of each token, whose negative is the loss of a row."""

from packages import lacks
from trl.trainer.utils import selective_log_softmax

LAST = "takes logits with the classes last"


@lacks(
    probability_target="takes class indices",
    uint8_target="calls gather, which refuses uint8",
    unbatched=LAST,
    spatial=LAST,
    errors="leaves errors to torch",
)
def trl_selective(logits, target, reduction="mean"):
    losses = -selective_log_softmax(logits, target)
    return {"none": lambda: losses, "mean": losses.mean, "sum": losses.sum}[reduction]()
