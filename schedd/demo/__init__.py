"""`schedd demo`: a search for hyper-parameters on a daemon and two workers of its own. Needs scikit-learn."""
