from torch import Tensor


class NormAndActivation:
    """
    What follows a convolution: its attributes `norm`, a module or None, and `activation`, a module,
    a function or None.
    """

    # A script cannot compare a function with None. It takes the property as a constant instead.
    __constants__ = ["has_activation"]
    __jit_unused_properties__ = ["has_activation"]

    @property
    def has_activation(self) -> bool:
        return self.activation is not None

    def _norm_and_activate(self, x: Tensor) -> Tensor:
        if self.norm is not None:
            x = self.norm(x)
        if self.has_activation:
            x = self.activation(x)
        return x
