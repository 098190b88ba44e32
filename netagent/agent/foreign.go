package agent

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"slices"
	"strings"

	"github.com/vishvananda/netlink"

	"github.com/braidnet/braid/internal/desired"
	"github.com/braidnet/braid/internal/desired/xt"
	"github.com/braidnet/braid/internal/kernel/ipt"
	"github.com/braidnet/braid/internal/kernel/nft"
	"github.com/braidnet/braid/netagent/agent/tools"
)

// ForeignProxies are the service proxies whose leftovers CleanupForeign removes.
var ForeignProxies = []string{"kube-proxy"}

// CleanupForeign removes what a service proxy that does not run any more left on this node: its rules go
// on matching, with endpoints that age. It returns what it removed, also when something failed. Our own
// agent may run meanwhile.
func CleanupForeign(proxy string, log *slog.Logger) (removed []string, err error) {
	if !slices.Contains(ForeignProxies, proxy) {
		return nil, fmt.Errorf("unknown proxy %q: its leftovers are not known; use one of %s", proxy, strings.Join(ForeignProxies, ", "))
	}
	var errs []error
	for _, step := range []func() ([]string, error){removeKubeProxyTables, removeKubeProxyChains, removeIPVSDevice} {
		had, err := step()
		if errors.Is(err, os.ErrPermission) {
			err = fmt.Errorf("%w: run this as root", err)
		}
		removed, errs = append(removed, had...), append(errs, err)
	}
	for _, r := range removed {
		log.Info("removed what kube-proxy left", "removed", r)
	}
	return removed, errors.Join(errs...)
}

// removeKubeProxyTables removes the tables of mode nftables.
func removeKubeProxyTables() (removed []string, err error) {
	conn, err := nft.Open()
	if err != nil {
		return nil, fmt.Errorf("nftables: %w", err)
	}
	defer conn.Close()
	const name = "kube-proxy"
	var ops []desired.NFTOp
	for _, f := range []desired.NFTFamily{desired.NFTIPv4, desired.NFTIPv6} {
		there, err := conn.Exists(f, name)
		if err != nil {
			return nil, err
		}
		if there {
			removed = append(removed, fmt.Sprintf("nftables table %s %s", f, name))
			ops = append(ops, desired.NFTOp{Verb: desired.NFTDeleteTable, Family: f, Table: name})
		}
	}
	if err := conn.Apply(ops); err != nil {
		return nil, err // one transaction: nothing went
	}
	return removed, nil
}

// removeKubeProxyChains removes the chains of the modes iptables and IPVS, from both variants' tables.
func removeKubeProxyChains() (removed []string, err error) {
	var errs []error
	for _, v := range ipt.Variants {
		for _, ipv6 := range []bool{false, true} {
			tool, err := ipt.Find(ipv6, v)
			if err != nil || !ipt.Enabled(ipv6) {
				continue // without the tool or the family nothing of it can be here
			}
			saved, err := tool.Tables()
			if err == nil {
				if input := xt.Remove(saved, ofKubeProxy); input != "" {
					if err = tool.Restore(input); err == nil {
						removed = append(removed, fmt.Sprintf("iptables chains KUBE-… of %s (%s)", tools.Family(ipv6), v))
					}
				}
			}
			if err != nil {
				errs = append(errs, fmt.Errorf("iptables (%s): %w", v, err))
			}
		}
	}
	return removed, errors.Join(errs...)
}

// ofKubeProxy reports whether a chain is kube-proxy's. The kubelet has some of its own, whose names begin alike.
func ofKubeProxy(table, chain string) bool {
	switch {
	case !strings.HasPrefix(chain, "KUBE-"):
		return false
	case chain == "KUBE-IPTABLES-HINT" || chain == "KUBE-KUBELET-CANARY" || chain == "KUBE-MARK-DROP":
		return false
	}
	return table != "filter" || chain != "KUBE-FIREWALL"
}

// removeIPVSDevice removes the device that mode IPVS gives all service addresses to. Without it the node takes
// no packets for them, so that virtual servers which are left have no effect.
func removeIPVSDevice() (removed []string, err error) {
	const name = "kube-ipvs0"
	dev, err := netlink.LinkByName(name)
	var none netlink.LinkNotFoundError
	switch {
	case errors.As(err, &none):
		return nil, nil
	case err == nil:
		err = netlink.LinkDel(dev)
	}
	if err != nil {
		return nil, fmt.Errorf("remove device %s: %w", name, err)
	}
	return []string{"device " + name + " with the addresses of services"}, nil
}
