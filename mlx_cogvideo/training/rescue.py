"""Saves what was learned when an error ends a training."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from ..distributed import Distributed
from ..errors import DeviceError, PeerLostError


@contextmanager
def rescued(save: Callable[[BaseException], None], distributed: Distributed) -> Iterator[None]:
    """Calls `save` with the error that ends the block, in each process that has to save."""
    try:
        yield
    except (DeviceError, PeerLostError) as error:
        save(error)
        raise
    except (Exception, KeyboardInterrupt) as error:
        # The other processes have the same error, or lose this one and save what it would.
        if distributed.is_main:
            save(error)
        raise
