// Command coredns is CoreDNS with Braid's kubernetes plugin in place of the in-tree one. It takes the
// same flags and the same Corefile.
package main

import (
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
	coremain.Run()
}
