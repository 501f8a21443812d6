"""Ways through gymnasium-robotics' mazes: cells, shortest paths, and waypoints that keep clear of the walls."""

from __future__ import annotations

from collections import deque

import numpy as np
from gymnasium_robotics.envs.maze.maze_v4 import Maze

Cell = tuple[int, int]
"""Row and column of a maze."""

WALL = 1


def free_cells(layout: list[list[int | str]]) -> list[Cell]:
    """The cells that are not walls, row by row."""
    return [(row, column) for row, cells in enumerate(layout) for column, cell in enumerate(cells) if cell != WALL]


def neighbours(cell: Cell) -> tuple[Cell, ...]:
    """The four cells that share a side with this one."""
    row, column = cell
    return (row + 1, column), (row - 1, column), (row, column + 1), (row, column - 1)


def steps_to(layout: list[list[int | str]], goal: Cell) -> dict[Cell, int]:
    """For every cell from which the goal can be reached, the length of the shortest path there."""
    free = set(free_cells(layout))
    steps = {goal: 0}
    queue = deque([goal])
    while queue:
        cell = queue.popleft()
        for near in neighbours(cell):
            if near in free and near not in steps:
                steps[near] = steps[cell] + 1
                queue.append(near)
    return steps


def path(steps: dict[Cell, int], start: Cell) -> list[Cell]:
    """A shortest path by `steps_to`, from start to goal, both included."""
    cells = [start]
    while steps[cells[-1]]:
        cells.append(min((near for near in neighbours(cells[-1]) if near in steps), key=steps.__getitem__))
    return cells


class Waypoints:
    """Where to head for next: a function of the position alone, so that who follows it has no memory either.

    On the shortest path from the present cell, the further of the next two cell centres whose straight line stays a
    given distance from every wall, first the wider distance, then the narrower; else the next cell, from the centre of
    this one. A goal that lies nearer to a wall than that is gone to from the next cell, unless another wall is nearer.
    """

    CLEARANCES = (1.4, 1.1)
    """m, for an ant; cells are 4 m wide."""
    LOOK_AHEAD = 2
    OFF_CENTRE = 0.6
    """m from a cell's centre, beyond which one returns there if no line is clear."""

    def __init__(self, maze: Maze, goal: np.ndarray):
        self.maze, self.goal = maze, np.asarray(goal, float)
        self.goal_cell = self.cell(self.goal)
        self.steps = steps_to(maze.maze_map, self.goal_cell)
        self.centres = {cell: maze.cell_rowcol_to_xy(np.array(cell)) for cell in self.steps}
        size = range(maze.map_length), range(maze.map_width)
        walls = [(row, column) for row in size[0] for column in size[1] if maze.maze_map[row][column] == WALL]
        self.walls = np.array([maze.cell_rowcol_to_xy(np.array(cell)) for cell in walls])

    def cell(self, position: np.ndarray) -> Cell:
        """The cell of a position [2] in metres."""
        row, column = self.maze.cell_xy_to_rowcol(position)
        return int(row), int(column)

    def clearance(self, start: np.ndarray, end: np.ndarray) -> float:
        """m: the least distance between a wall and the segment, but for its first 0.6 m, which one is on already."""
        length = float(np.linalg.norm(end - start))
        shares = np.linspace(0.0, 1.0, max(2, int(length / 0.3)))
        shares = shares[shares * length > 0.6] if length > 0.7 else shares[-1:]
        points = start + shares[:, None] * (end - start)
        outside = np.abs(points[:, None] - self.walls) - self.maze.maze_size_scaling / 2
        return float(np.linalg.norm(np.maximum(outside, 0.0), axis=-1).min())

    def __call__(self, position: np.ndarray) -> np.ndarray:
        """The waypoint [2] for a position [2], in metres."""
        here = self.cell(position)
        if here not in self.steps:  # leaning over a wall
            here = min(self.centres, key=lambda cell: float(np.sum((self.centres[cell] - position) ** 2)))
        if here == self.goal_cell:
            return self.goal
        ahead = path(self.steps, here)[1 : 1 + self.LOOK_AHEAD]
        points = [self.goal if cell == self.goal_cell else self.centres[cell] for cell in ahead]
        for clearance in self.CLEARANCES:
            for point in reversed(points):
                if self.clearance(position, point) >= clearance:
                    return point
        if ahead[0] == self.goal_cell and self.clearance(position, self.goal) >= self.clearance(self.goal, self.goal):
            return self.goal
        off_centre = np.linalg.norm(position - self.centres[here]) > self.OFF_CENTRE
        return self.centres[here] if off_centre else points[0]
