"""The bugs of findings.toml, each in a few lines that need the package and torch alone, not crossent.

Each function has the name of a loss in losses.toml, and passes as long as the package has the bug.
"""

import os

os.environ["KERAS_BACKEND"], os.environ["TRITON_INTERPRET"] = "torch", "1"

import torch  # noqa: E402
from torch.nn.functional import cross_entropy  # noqa: E402

LOGITS = torch.tensor([[2.0, 0.0, -1.0], [0.0, 1.0, 3.0]])
MASKED = torch.tensor([[2.0, 0.0, -torch.inf], [0.0, 1.0, -torch.inf]])  # class 2 has probability 0
FAR = torch.tensor([[1e6, 1e6, 1e6]])  # the loss is log 3
TARGET = torch.tensor([0, 1])


def error_of(call):
    """Return the message of the error that a call raises."""
    try:
        call()
    except Exception as error:
        return str(error)
    return ""


def allennlp_sequence():
    from allennlp_losses import sequence_cross_entropy_with_logits as loss

    half = LOGITS[:1].half()[None]  # the mean of one row is the row
    assert loss(half, TARGET[:1, None], torch.ones(1, 1), average="token") == cross_entropy(half[0], TARGET[:1])
    tiny = loss(half, TARGET[:1, None], torch.full((1, 1), 1e-4), average="token")
    assert tiny < 0.6 * cross_entropy(half[0], TARGET[:1])  # a weight of 1e-4, divided by 2e-4


def catalyst_naive():
    from catalyst_losses import NaiveCrossEntropyLoss

    logits, target = LOGITS.t()[None], torch.eye(3)[TARGET].t()[None]  # (1, 3, 2)
    assert NaiveCrossEntropyLoss(size_average=False)(logits, target) == 0  # the softmax of one number is 1
    assert cross_entropy(logits, target, reduction="sum") > 2


def deepspeed_vocab_parallel():
    from deepspeed_losses import vocab_parallel_cross_entropy

    assert vocab_parallel_cross_entropy(100 * FAR, TARGET[:1]) == 0


def espnet_smoothing():
    from espnet_losses import LabelSmoothingLoss

    assert LabelSmoothingLoss(3, -100, 0.0)(MASKED[None], TARGET[None]).isnan()
    assert cross_entropy(MASKED, TARGET).isfinite()


def fastai_flat():
    from fastai_losses import CrossEntropyLossFlat

    logits, target = torch.randn(1, 3, 2, 3, 4), torch.randint(3, (1, 2, 3, 4))
    assert abs(CrossEntropyLossFlat(axis=1)(logits, target) - cross_entropy(logits, target)) > 1e-3


def fastai_smoothed():
    from fastai_losses import LabelSmoothingCrossEntropy

    assert LabelSmoothingCrossEntropy(eps=0.0)(MASKED, TARGET).isnan()


def keras_categorical():
    import keras

    loss = keras.losses.CategoricalCrossentropy(from_logits=True, label_smoothing=0.5, axis=1)
    logits, target = torch.randn(1, 3, 7), torch.eye(3)[torch.randint(3, (1, 7))].mT  # 7 is not the number of classes
    assert abs(loss(target, logits) - cross_entropy(logits, target, label_smoothing=0.5)) > 1e-3


def keras_ops():
    import keras

    number = torch.tensor([1 + 2**-40], dtype=torch.float64)
    assert keras.ops.mean(number) != number


def keras_sparse():
    import keras

    logits = torch.arange(300.0).bfloat16()[None]
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True, dtype="bfloat16")
    assert loss(torch.tensor([257]), logits) == loss(torch.tensor([256]), logits)


def keras_sparse_axis():
    import keras

    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True, axis=1, reduction=None)
    assert loss(torch.tensor([[0], [1]]), LOGITS[:, :, None]).shape == (2,)  # not (2, 1)


def liger_kernel():
    from liger_kernel.transformers.functional import liger_cross_entropy

    strided = torch.stack([LOGITS, LOGITS], 2)[:, :, 0].requires_grad_()
    liger_cross_entropy(strided, TARGET, reduction="sum").backward()
    assert torch.equal(strided.grad, LOGITS)  # the gradient is the logits


def liger_kernel_expanded():
    from liger_kernel.transformers.functional import liger_cross_entropy

    logits = LOGITS[:1].clone().expand(2, 3)
    right = cross_entropy(logits, TARGET)  # before the kernel writes into the logits
    assert liger_cross_entropy(logits.requires_grad_(), TARGET) < 0.6 * right


def liger_kernel_negated():
    from liger_kernel.transformers.functional import liger_cross_entropy

    negated = torch._neg_view(-LOGITS)  # a view that equals LOGITS, and whose memory holds -LOGITS
    right = cross_entropy(negated, TARGET)
    assert (liger_cross_entropy(negated.requires_grad_(), TARGET) - right).abs() > 0.1


def liger_linear():
    from liger_kernel.transformers.functional import liger_fused_linear_cross_entropy

    hidden, weight = torch.ones(2, 4), torch.ones(3, 4, requires_grad=True)
    loss = liger_fused_linear_cross_entropy(hidden, weight, TARGET)  # hidden is frozen, weight is not
    loss.backward()
    assert weight.grad is None


def liger_kernel_smoothed():
    from liger_kernel.transformers.functional import liger_cross_entropy

    logits = torch.tensor([[-torch.inf, 0.0]]).requires_grad_()
    assert liger_cross_entropy(logits, TARGET[:1], reduction="sum", label_smoothing=1.0).isnan()


def megatron_vocab_parallel():
    from megatron_losses import vocab_parallel_cross_entropy

    far = torch.tensor([[200.0, 0.0]])  # the softmax of class 1 is 0 in float32
    assert vocab_parallel_cross_entropy(far.clone(), TARGET[:1], 0.1).isinf()
    assert cross_entropy(far, TARGET[:1], label_smoothing=0.2).isfinite()


def megatron_vocab_parallel_twice():
    from megatron_losses import vocab_parallel_cross_entropy

    logits = LOGITS.clone().requires_grad_()
    loss = vocab_parallel_cross_entropy(logits.clone(), TARGET, 0.0).sum()
    loss.backward(retain_graph=True)
    assert "modified by an inplace operation" in error_of(loss.backward)


def mmsegmentation_pixels():
    from mmsegmentation_losses import cross_entropy as pixels

    small = torch.full((3,), 1e-7)
    got = pixels(LOGITS, TARGET, class_weight=small, avg_non_ignore=True)
    assert got < 0.7 * cross_entropy(LOGITS, TARGET, small)


def mmsegmentation_pixels_ignored():
    from mmsegmentation_losses import cross_entropy as pixels

    options = {"class_weight": torch.ones(3), "ignore_index": 255, "avg_non_ignore": True}
    assert "index 255 is out of bounds" in error_of(lambda: pixels(LOGITS, torch.tensor([0, 255]), **options))


def monai_focal():
    from monai.losses import FocalLoss

    assert FocalLoss(gamma=0.0, use_softmax=True, to_onehot_y=True)(MASKED, TARGET[:, None]).isnan()


def nemo_smoothed():
    from nemo_losses import SmoothedCrossEntropyLoss

    assert SmoothedCrossEntropyLoss(pad_id=-1)(MASKED.log_softmax(1)[None], TARGET[None]).isnan()


def onnx_reference():
    from onnx.helper import make_node
    from onnx.reference import ReferenceEvaluator

    node = ReferenceEvaluator(make_node("SoftmaxCrossEntropyLoss", ["x", "y"], ["loss"]))
    far = torch.tensor([[0.0, 200.0]])
    assert node.run(None, {"x": far.numpy(), "y": TARGET[:1].numpy()})[0] == torch.inf
    assert cross_entropy(far, TARGET[:1]) == 200


def sklearn_multinomial():
    from sklearn._loss import HalfMultinomialLoss

    logits, beyond = LOGITS.double().numpy(), torch.tensor([3.0, 0.0]).double().numpy()
    loss = HalfMultinomialLoss(n_classes=3).loss(beyond, logits)[0]
    assert abs(loss - (LOGITS[0].logsumexp(0) - LOGITS[1, 0])) < 1e-6  # class 3 of row 0 is class 0 of row 1


def smp_soft():
    from smp_losses import SoftCrossEntropyLoss

    ignored = torch.tensor([0, -100])
    assert SoftCrossEntropyLoss(smooth_factor=0.0)(LOGITS, ignored) < 0.6 * cross_entropy(LOGITS, ignored)
    assert SoftCrossEntropyLoss("none", 0.0)(LOGITS, TARGET).shape == (2, 1)
    assert SoftCrossEntropyLoss(smooth_factor=0.0)(MASKED, TARGET).isnan()


def speechbrain_nll():
    from speechbrain_losses import nll_loss

    weight, log_probs = torch.tensor([3.0, 1.0, 1.0]), LOGITS.log_softmax(1)
    assert nll_loss(log_probs, TARGET, weight=weight) > 1.9 * cross_entropy(LOGITS, TARGET, weight)
    assert nll_loss(log_probs, TARGET, reduction="sum").shape == (2,)


def timm_label_smoothing():
    from timm_losses import LabelSmoothingCrossEntropy

    assert LabelSmoothingCrossEntropy(smoothing=0.0)(MASKED, TARGET).isnan()


def trl_selective():
    from trl_losses import selective_log_softmax

    assert selective_log_softmax(100 * FAR, TARGET[:1]) == 0
    assert selective_log_softmax(torch.tensor([[torch.inf, 0.0]]), TARGET[1:]) == -torch.inf  # log_softmax is NaN


def unsloth_smoothed():
    from unsloth_losses import smoothed_nll

    infinite = torch.tensor([[torch.inf, 0.0]])
    assert smoothed_nll(infinite, TARGET[:1], 0.0) == 0
    assert cross_entropy(infinite, TARGET[:1]).isnan()


HERE = [value for value in globals().values() if getattr(value, "__module__", "") == __name__]
FAULTS = [function for function in HERE if function is not error_of]
