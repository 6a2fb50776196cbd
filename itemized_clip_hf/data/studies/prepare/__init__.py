"""A folder of studies and a file of reports -> a training set."""
