"""Result files of runs and jobs, and the building blocks of the HTML report."""
