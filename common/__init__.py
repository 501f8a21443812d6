"""What the algorithms share: tasks, data, replay, networks, loops and run directories. Knows no algorithm."""

from common import stops

stops.while_importing()
