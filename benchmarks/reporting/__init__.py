"""What the commands share: finished runs, statistics, pictures, pages, published numbers."""
