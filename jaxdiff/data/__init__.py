"""Clips in: video files and folders, labelled data sets, generated worlds."""
