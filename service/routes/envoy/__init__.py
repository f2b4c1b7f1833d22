"""`POST /json`: Envoy's rate-limit service for who has no gRPC: its messages in protobuf's JSON form, read and written
by hand, so that it works without the extra `onequota[grpc]`.

    200 or 429, with overallCode and a status a descriptor; 400 where a value is wrong; 503 where nobody could decide
"""

from service.routes.envoy.description import describe
from service.routes.envoy.route import Envoy

__all__ = ["Envoy", "describe"]
