package agent

import (
	"errors"
	"fmt"
	"os"
	"strings"

	"github.com/braidnet/braid/internal/kernel/ipt"
)

// hintIPTables adds to an error about iptables what it comes from in a container: an image that was made
// without iptables, or a DaemonSet without the rights that variant legacy asks for.
func hintIPTables(v ipt.Variant, err error) error {
	switch {
	case err == nil:
		return nil
	case os.Getenv("BRAID_IMAGE") != "":
		return fmt.Errorf("%w; this image of Braid was made without iptables: set service-mode to nftables (Linux 5.13 or newer), or take one that has it", err)
	case v == ipt.Legacy && (errors.Is(err, os.ErrPermission) || strings.Contains(err.Error(), "xtables.lock") || strings.Contains(err.Error(), "ermission denied")):
		return fmt.Errorf("%w; in a cluster the component deploy/iptables gives the agent the capability NET_RAW and the node's /run/xtables.lock", err)
	}
	return err
}
