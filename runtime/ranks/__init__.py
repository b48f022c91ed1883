"""The processes of one engine: started together, asked together, ended together."""
