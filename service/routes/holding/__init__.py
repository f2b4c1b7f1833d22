"""What outlives one question: units given back, estimates that are settled, units that are held.

    POST   /v1/refund                        give back what a check charged
    POST   /v1/reservations                  charge an estimate → id
    POST   /v1/reservations/ID/settle        make it cost what is true; DELETE /v1/reservations/ID: nothing
    POST   /v1/leases                        hold a unit of concurrency → id
    PUT    /v1/leases/ID                     hold it for as long again; DELETE releases it

Start reading at `route.py`.
"""

from service.routes.holding.route import router

__all__ = ["router"]
