// Command coredns is CoreDNS with Braid's kubernetes plugin in place of the in-tree one. It takes the
// same flags and the same Corefile, and -validate checks one without starting.
//
// With the build tag "minimal" it carries only what a cluster's ordinary Corefile uses.
package main

import (
	"flag"
	"fmt"
	"os"

	"github.com/coredns/coredns/core/dnsserver"
	"github.com/coredns/coredns/coremain"
)

func main() {
	if err := dnsserver.SetDirectives(directives); err != nil {
		fmt.Fprintf(os.Stderr, "coredns: order of plugins: %v\n", err)
		os.Exit(1)
	}
	check := flag.Bool("validate", false, "Check the Corefile and print every problem, without starting")
	flag.Parse()
	if *check {
		os.Exit(validateFile(flag.Lookup("conf").Value.String(), os.Stdout))
	}
	coremain.Run()
}
