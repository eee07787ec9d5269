"""The programs inside the users' interpreters: each is one file that imports nothing of ours."""
