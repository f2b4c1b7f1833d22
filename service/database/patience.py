"""How long a call to Supabase may take, and how often it is sent."""

import math
from dataclasses import asdict, dataclass

from service.errors import ConfigurationError


@dataclass(frozen=True, slots=True, kw_only=True)
class Patience:
    """All in seconds, above 0; what is not is a `ConfigurationError`.

    Attributes:
        deadline_s: For the whole call, with all its attempts and the waits between them.
        connect_s: Until there is a connection.
        read_s: Longest silence of Supabase.
        write_s: Longest wait for the network to take more.
        pool_s: Until one of the process's connections is free.
        keep_alive_s: How long an idle connection is kept: shorter than what stands before Supabase keeps it (60 s and
            more), so that it is nearly always we who close it.
        attempts: How often a call is sent at most; 1 = never again.
    """

    deadline_s: float = 10
    connect_s: float = 3
    read_s: float = 8
    write_s: float = 8
    pool_s: float = 5
    keep_alive_s: float = 15
    attempts: int = 4

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if not 0 < value < math.inf or (name == "attempts" and value != int(value)):
                raise ConfigurationError(
                    f"patience: {name}={value}: wanted a number above 0, and of attempts a whole one"
                )
