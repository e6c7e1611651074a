"""Model-agnostic meta-learning: trains for what the weights become after a few steps on an episode."""

from etude.objectives.inner_loop import InnerLoop


class Maml(InnerLoop):
    """Differentiates the loss of the queries at the adapted weights through the inner steps, second derivatives included.

    On a quadratic support loss with Hessian H and one step of rate a, the gradient is (I - a H) g, where g is the gradient of the
    queries' loss at the adapted weights. Source: Finn et al. 2017, algorithm 1. Arguments: see `InnerLoop`.
    """

    second_order = True


class Fomaml(InnerLoop):
    """First-order MAML: takes the gradient of the queries' loss at the adapted weights as the gradient at the first ones.

    Source: Finn et al. 2017, section 5.2. Arguments: see `InnerLoop`; inner rates can be learnt.
    """
