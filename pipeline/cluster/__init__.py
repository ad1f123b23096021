"""The Ray cluster: start or join Ray, divide its resources between the stages, submit jobs to it.

`ray_start` connects to Ray, `resources` and `object_store` size the stages, `ray_errors` translates what Ray raises,
and `ray_private` holds every use of Ray that is not public. `jobs_api` and `kuberay` submit a verb as a job, and
`job_environment` checks its environment variables. Nothing here reads runs, audio or models.
"""
