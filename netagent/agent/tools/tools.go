// Package tools is what the loops of an agent share about the node's programs and families.
package tools

import (
	"errors"
	"fmt"
	"os"
	"strings"

	"github.com/braidnet/braid/internal/kernel/ipt"
)

// Traces are how to see which variant of iptables a node's programs use: the kubelet makes the first chain for
// others to look at (KEP-3178); older ones have only the second, which they make to see when it goes.
var Traces = ipt.Traces{Chains: []string{"KUBE-IPTABLES-HINT", "KUBE-KUBELET-CANARY"}, Own: "BRAID"} // of services and of policies

// RepairShare bounds what it costs when somebody else writes rules all the time: one part of the time in so many
// goes into comparing ours with them.
const RepairShare = 50

// HaveIPv6 reports whether the running kernel has IPv6 at all.
func HaveIPv6() bool { return ipt.Enabled(true) }

// Family names a family as people read it.
func Family(ipv6 bool) string {
	if ipv6 {
		return "IPv6"
	}
	return "IPv4"
}

// HintIPTables adds to an error about iptables what it comes from in a container: an image that was made
// without iptables, or a DaemonSet without the rights that variant legacy asks for.
func HintIPTables(v ipt.Variant, err error) error {
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
