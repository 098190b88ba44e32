package agent

import (
	"fmt"
	"os"
)

// hintImage adds to an error about missing iptables what is special in Braid's own image: it holds
// static programs only, and there is nothing to install a package with.
func hintImage(err error) error {
	if err == nil || os.Getenv("BRAID_IMAGE") == "" {
		return err
	}
	return fmt.Errorf("%w; Braid's image has no iptables: set service-mode to nftables (Linux 5.13 or newer), or add iptables to an image of your own", err)
}
