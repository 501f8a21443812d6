"""What the algorithms share: tasks, data, replay, networks, loops and run directories. Knows no algorithm."""

from common import output, stops

stops.while_importing()
output.open_standard_streams()
