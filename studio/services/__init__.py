"""Threads, processes and files between the page and the trainers. Imports core and hardware."""
