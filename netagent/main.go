// Command netagent is Braid's node agent and everything a person asks it: see package cli.
package main

import (
	"os"

	"github.com/braidnet/braid/netagent/cli"
)

func main() { os.Exit(cli.Main()) }
