package main

import (
	"encoding/json"
	"fmt"
	"maps"
	"path"
	"slices"
	"strings"

	"github.com/braidnet/braid/internal/kernel/link"
	"github.com/containernetworking/cni/pkg/types"
)

// rawOptions are options of the reference plugins bridge, ptp and tuning, by their names.
type rawOptions struct {
	IsGateway                 *bool             `json:"isGateway"`
	IsDefaultGateway          *bool             `json:"isDefaultGateway"`
	ForceAddress              bool              `json:"forceAddress"`
	IPMasq                    bool              `json:"ipMasq"`
	IPMasqBackend             string            `json:"ipMasqBackend"`
	HairpinMode               *bool             `json:"hairpinMode"`
	PromiscMode               bool              `json:"promiscMode"`
	VLAN                      int               `json:"vlan"`
	VLANTrunk                 []json.RawMessage `json:"vlanTrunk"`
	PreserveDefaultVLAN       *bool             `json:"preserveDefaultVlan"` // of no meaning without the two before
	MACSpoofCheck             *bool             `json:"macspoofchk"`
	EnableDAD                 bool              `json:"enabledad"`
	DisableContainerInterface bool              `json:"disableContainerInterface"`
	PortIsolation             bool              `json:"portIsolation"`

	Sysctl   map[string]string `json:"sysctl"`
	MAC      string            `json:"mac"`
	Promisc  bool              `json:"promisc"`
	Allmulti bool              `json:"allmulti"`
	TxQLen   *int              `json:"txQLen"`
}

// options is rawOptions, checked.
type options struct {
	NoDefault  bool // the pod's default route is not ours to make
	Force      bool // the bridge loses other addresses of its families
	Masquerade bool
	Hairpin    bool
	Promisc    bool // of the bridge
	Inside     link.PodOptions
}

// unsupported is the error for an option that is known to others and not served here (specification, code 2).
func unsupported(key string, value any, instead string) *types.Error {
	return types.NewError(types.ErrUnsupportedField, fmt.Sprintf("%s is %v, which this plugin does not do: %s", key, value, instead), "")
}

func (raw rawOptions) check(routed bool) (o options, err error) {
	switch {
	case raw.VLAN != 0:
		return o, unsupported("vlan", raw.VLAN, "leave it out; pods of different networks are told apart by policies")
	case len(raw.VLANTrunk) > 0:
		return o, unsupported("vlanTrunk", "a list", "leave it out")
	case raw.DisableContainerInterface:
		return o, unsupported("disableContainerInterface", true, "leave it out; the pod's interface is brought up with its addresses")
	case raw.PortIsolation:
		return o, unsupported("portIsolation", true, "leave it out; pods meet in the node's IP stack, where policies keep them apart")
	case raw.IPMasqBackend != "" && raw.IPMasqBackend != "nftables":
		return o, unsupported("ipMasqBackend", raw.IPMasqBackend, "leave it out, or say nftables")
	}
	is := func(b *bool) bool { return b != nil && *b }
	if raw.IsGateway != nil && !*raw.IsGateway && !is(raw.IsDefaultGateway) {
		return o, unsupported("isGateway", false, "leave it out or say true; pods reach others through their gateway only")
	}
	o.NoDefault = (raw.IsGateway != nil || raw.IsDefaultGateway != nil) && !is(raw.IsDefaultGateway)
	if is(raw.HairpinMode) && raw.PromiscMode {
		return o, invalid("hairpinMode and promiscMode are both true: expected one of them, since packets would come twice")
	}
	if routed && (raw.ForceAddress || raw.PromiscMode || is(raw.HairpinMode)) {
		return o, invalid("forceAddress, hairpinMode and promiscMode are of a bridge: leave them out with mode routed")
	}
	o.Force, o.Masquerade, o.Promisc = raw.ForceAddress, raw.IPMasq, raw.PromiscMode
	o.Hairpin = !raw.PromiscMode && (raw.HairpinMode == nil || *raw.HairpinMode)
	o.Inside = link.PodOptions{DAD: raw.EnableDAD, Promisc: raw.Promisc, AllMulticast: raw.Allmulti, TxQueue: raw.TxQLen}
	if raw.TxQLen != nil && *raw.TxQLen < 0 {
		return o, invalid("txQLen is %d: expected a number of packets", *raw.TxQLen)
	}
	for _, key := range slices.Sorted(maps.Keys(raw.Sysctl)) {
		name := key
		if !strings.Contains(key, "/") {
			name = strings.ReplaceAll(key, ".", "/")
		}
		if path.Clean(name) != name || !strings.HasPrefix(name, "net/") {
			return o, invalid("sysctl has %q: expected a parameter of the pod's network such as net.core.somaxconn", key)
		}
		o.Inside.Sysctls = append(o.Inside.Sysctls, [2]string{name, raw.Sysctl[key]})
	}
	return o, nil
}

// antiSpoofing joins our word and the reference plugin's for the same thing.
func (raw rawConfig) antiSpoofing() (bool, error) {
	a, b := raw.AntiSpoof, raw.MACSpoofCheck
	if a != nil && b != nil && *a != *b {
		return true, invalid("antiSpoofing is %v and macspoofchk is %v: expected one of them, as they mean the same", *a, *b)
	}
	for _, given := range []*bool{a, b} {
		if given != nil {
			return *given, nil
		}
	}
	return true, nil
}

// Keys that mean something here, by the place they stand at.
var (
	topKeys = []string{"cniVersion", "name", "type", "mode", "bridge", "mtu", "logLevel", "dns", "args", "ipam", "prevResult", "capabilities",
		"readyFile", "policySocket", "policyFirst", "antiSpoofing", "runtimeConfig",
		"isGateway", "isDefaultGateway", "forceAddress", "ipMasq", "ipMasqBackend", "hairpinMode", "promiscMode", "vlan", "vlanTrunk",
		"preserveDefaultVlan", "macspoofchk", "enabledad", "disableContainerInterface", "portIsolation",
		"sysctl", "mac", "promisc", "allmulti", "txQLen"}
	rangeKeys      = []string{"subnet", "rangeStart", "rangeEnd", "gateway"}
	ipamKeys       = append([]string{"type", "dataDir", "ranges", "routes", "resolvConf"}, rangeKeys...)
	routeKeys      = []string{"dst", "gw", "mtu", "advmss", "priority"}
	capabilityKeys = []string{"portMappings", "bandwidth", "ips", "mac", "ipRanges", "dns"}
)

// unknown is an error for the first key that means nothing here: one that is spelled wrong, or asks for what this
// plugin does not do. Keys with a slash are of runtimes, and what begins with an underscore is a remark.
func unknown(data []byte) error {
	top := object(data)
	ipam := object(top["ipam"])
	for _, part := range []struct {
		where string
		keys  map[string]json.RawMessage
		known []string
	}{{"", top, topKeys}, {"ipam.", ipam, ipamKeys}, {"capabilities.", asked(top["capabilities"]), capabilityKeys}, {"runtimeConfig.", object(top["runtimeConfig"]), capabilityKeys}} {
		if err := firstUnknown(part.where, part.keys, part.known); err != nil {
			return err
		}
	}
	var ranges [][]map[string]json.RawMessage
	_ = json.Unmarshal(ipam["ranges"], &ranges)
	for i, set := range ranges {
		for j, r := range set {
			if err := firstUnknown(fmt.Sprintf("ipam.ranges[%d][%d].", i, j), r, rangeKeys); err != nil {
				return err
			}
		}
	}
	var routes []map[string]json.RawMessage
	_ = json.Unmarshal(ipam["routes"], &routes)
	for i, r := range routes {
		if err := firstUnknown(fmt.Sprintf("ipam.routes[%d].", i), r, routeKeys); err != nil {
			return err
		}
	}
	return nil
}

func firstUnknown(where string, keys map[string]json.RawMessage, known []string) error {
	for _, key := range slices.Sorted(maps.Keys(keys)) {
		known := slices.ContainsFunc(known, func(k string) bool { return strings.EqualFold(k, key) }) // as the decoder has it
		if !known && !strings.Contains(key, "/") && !strings.HasPrefix(key, "_") {
			return unsupported(where+key, string(keys[key]), "leave it out; cni/README.md lists the options")
		}
	}
	return nil
}

// object is what a JSON object has; what else is wrong with it the decoder says.
func object(data []byte) (m map[string]json.RawMessage) {
	_ = json.Unmarshal(data, &m)
	return m
}

// asked drops the capabilities that are listed as not wanted.
func asked(data []byte) map[string]json.RawMessage {
	m := object(data)
	maps.DeleteFunc(m, func(_ string, v json.RawMessage) bool { return string(v) == "false" })
	return m
}

// bridgeOf is the bridge that a configuration asks for.
func (c *config) bridgeOf() link.Bridge {
	return link.Bridge{Name: c.Bridge, MTU: c.MTU, Addrs: gatewayAddrs(c.Sets), Force: c.Options.Force, Promisc: c.Options.Promisc}
}

// network is the link of the pods' network; empty where each has its own.
func (c *config) network() string {
	if c.Routed {
		return ""
	}
	return c.Bridge
}
