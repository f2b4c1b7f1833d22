"""`/v1/authorize`, any method: the sub-request of a gateway (nginx, Caddy, Traefik): may its client's request pass?

values     what is known of that request: remote_address, method, path, host, api_key
asking     which descriptors are asked: those that the domain has rules for, or those that the gateway names
answer     200, or 429 with Retry-After and problem+json, both with the RateLimit headers; no body is read

/v1/authorize?domain=site                          every rule of the domain whose keys are among the values
…&descriptor=remote_address,path                   this descriptor, in this order; may come several times
…&refuse=403                                       403 in place of 429, and 500 in place of 401 and 403: nginx takes
                                                   these two for a refusal, and everything else for an error
"""

from service.routes.authorize.description import describe
from service.routes.authorize.route import Authorize

__all__ = ["Authorize", "describe"]
