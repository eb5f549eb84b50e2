"""Property tests of kernels, schedules, models and files, for our own tests and for users."""
