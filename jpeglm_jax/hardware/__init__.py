"""What differs from chip to chip, and what its compiler reports."""
