package agent

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/braidnet/braid/netagent/service"
)

// DetectLocal says how pods of this node are told from everybody else, by the names that kube-proxy has for it.
type DetectLocal struct {
	Mode        string // one of DetectLocalModes; empty: ClusterCIDR where ClusterCIDR is given, else NodeCIDR
	ClusterCIDR string // CIDRs, comma-separated
	Bridge      string // name of a device
	Prefix      string // beginning of names of devices
}

// DetectLocalModes are those of kube-proxy (KEP-2450).
var DetectLocalModes = []string{"ClusterCIDR", "NodeCIDR", "BridgeInterface", "InterfaceNamePrefix"}

// local returns what the planner is told. Settings that would count for nothing are refused.
func (d DetectLocal) local() (out service.Local, err error) {
	mode := d.Mode
	if mode == "" {
		mode = "NodeCIDR"
		if d.ClusterCIDR != "" {
			mode = "ClusterCIDR"
		}
	}
	if !slices.Contains(DetectLocalModes, mode) {
		return out, fmt.Errorf("detect-local-mode: unknown mode %q: use one of %s", mode, strings.Join(DetectLocalModes, ", "))
	}
	for _, s := range []struct{ name, value, mode string }{{"cluster-cidr", d.ClusterCIDR, "ClusterCIDR"},
		{"pod-bridge-interface", d.Bridge, "BridgeInterface"}, {"pod-interface-name-prefix", d.Prefix, "InterfaceNamePrefix"}} {
		switch {
		case s.mode == mode && s.value == "":
			return out, fmt.Errorf("%s: detect-local-mode %s needs it", s.name, mode)
		case s.mode != mode && s.value != "":
			return out, fmt.Errorf("%s: counts for nothing with detect-local-mode %s: leave it out, or use %s", s.name, mode, s.mode)
		}
	}
	switch mode {
	case "ClusterCIDR":
		if out.Sources, err = prefixes(d.ClusterCIDR); err != nil {
			return out, fmt.Errorf("cluster-cidr: %w", err)
		}
	case "BridgeInterface":
		if err := deviceName(d.Bridge); err != nil {
			return out, fmt.Errorf("pod-bridge-interface: %w", err)
		}
		out.Link = d.Bridge
	case "InterfaceNamePrefix":
		if err := deviceName(d.Prefix); err != nil {
			return out, fmt.Errorf("pod-interface-name-prefix: %w", err)
		}
		out.Link, out.Prefix = d.Prefix, true
	}
	return out, nil
}

// maxDeviceName is IFNAMSIZ less the zero at the end (linux/if.h), bytes.
const maxDeviceName = 15

// deviceName checks what stands in rules for a device. For iptables a plus sign is no part of a name.
func deviceName(name string) error {
	if len(name) > maxDeviceName {
		return fmt.Errorf("%q is no name of a device: it has more than %d characters", name, maxDeviceName)
	}
	odd := func(r rune) bool { return r <= ' ' || r > '~' || strings.ContainsRune(`/+*!"'\`, r) }
	if strings.ContainsFunc(name, odd) {
		return errors.New("the name of a device has letters, digits and the like, none of " + `/ + * ! " ' \ and blanks`)
	}
	return nil
}
