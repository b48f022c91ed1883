"""Several hosts: Ray, the check before a launch, the files that bring a cluster up."""
