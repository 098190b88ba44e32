package main

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"reflect"
	"slices"

	"github.com/braidnet/braid/cni/hostport"
	"github.com/braidnet/braid/cni/ipam"
	"github.com/braidnet/braid/internal/kernel/link"
	"github.com/containernetworking/cni/pkg/types"
	types100 "github.com/containernetworking/cni/pkg/types/100"
	"github.com/containernetworking/cni/pkg/utils"
	"github.com/containernetworking/cni/pkg/version"
)

const (
	defaultBridge          = "braid0"
	modeBridge, modeRouted = "bridge", "routed"
	// minMTU6 is the least an interface with IPv6 may have (RFC 8200 §5),
	// minMTU4 what the kernel takes for IPv4 alone (RFC 791 §3.2).
	minMTU6, minMTU4, maxMTU = 1280, 68, 65535
)

// config is a checked configuration.
type config struct {
	CNIVersion     string
	Name           string
	Routed         bool // pods have no bridge, but a route each
	Bridge         string
	MTU            int // 0: the kernel's default
	Sets           []ipam.Set
	Routes         []link.Route // besides the default routes; through the gateway of their family
	Ports          []hostport.Mapping
	IPs            []netip.Addr     // asked for, each in another set
	MAC            net.HardwareAddr // asked for; nil: any
	DataDir        string
	ToPod, FromPod link.Rate
	// AntiSpoofing keeps pods from sending with addresses that are not theirs.
	AntiSpoofing bool
	PolicySocket string // of the agent that enforces policy; empty: nobody does
	PolicyFirst  bool   // no pod is made before that agent has confirmed its policies
	ReadyFile    string // there since pods can be reached; empty: always
	DNS          types.DNS
	Options      options
	Prev         *types100.Result // nil unless chained or CHECK
	Log          *slog.Logger
}

// rawConfig is the configuration as it is written. Option names below ipam are
// those of host-local.
type rawConfig struct {
	rawOptions

	CNIVersion string         `json:"cniVersion"`
	Name       string         `json:"name"`
	Type       string         `json:"type"`
	Mode       string         `json:"mode"`
	Bridge     *string        `json:"bridge"`
	MTU        int            `json:"mtu"`
	LogLevel   string         `json:"logLevel"`
	DNS        types.DNS      `json:"dns"`
	IPAM       rawIPAM        `json:"ipam"`
	ReadyFile  string         `json:"readyFile"`
	Policy     string         `json:"policySocket"`
	First      bool           `json:"policyFirst"`
	AntiSpoof  *bool          `json:"antiSpoofing"`
	Runtime    rawRuntime     `json:"runtimeConfig"`
	Args       rawArgs        `json:"args"`
	PrevResult map[string]any `json:"prevResult"`
}

type rawIPAM struct {
	rawRange // a single range, host-local's old form

	Type    string       `json:"type"`
	DataDir string       `json:"dataDir"`
	Ranges  [][]rawRange `json:"ranges"`
	Routes  []rawRoute   `json:"routes"`
	// ResolvConf is a file of the node in the form of resolv.conf(5), the pod's DNS.
	ResolvConf string `json:"resolvConf"`
}

type rawRange struct {
	Subnet     string `json:"subnet"`
	RangeStart string `json:"rangeStart"`
	RangeEnd   string `json:"rangeEnd"`
	Gateway    string `json:"gateway"`
}

type rawRoute struct {
	Dst      string `json:"dst"`
	GW       string `json:"gw"`
	MTU      int    `json:"mtu"`
	AdvMSS   int    `json:"advmss"`
	Priority int    `json:"priority"`
}

// invalid is the error for a value that cannot be: code 7 of the
// specification, naming the key and what was expected.
func invalid(format string, args ...any) *types.Error {
	return types.NewError(types.ErrInvalidNetworkConfig, fmt.Sprintf(format, args...), "")
}

// parseConfig reads and checks a configuration. Every error is a *types.Error.
func parseConfig(data []byte) (*config, error) {
	raw, err := decode(data)
	if err != nil {
		return nil, err
	}
	if err := unknown(data); err != nil {
		return nil, err
	}
	c, err := raw.base()
	if err != nil {
		return nil, err
	}
	raw.IPAM.Ranges = slices.Concat(raw.Runtime.IPRanges, raw.IPAM.all()) // as with host-local
	if c.Sets, err = raw.IPAM.sets(); err != nil {
		return nil, err
	}
	if c.Routes, err = raw.IPAM.routes(c.Sets); err != nil {
		return nil, err
	}
	if err := c.request(raw); err != nil {
		return nil, err
	}
	if c.ToPod, c.FromPod, err = raw.Runtime.Bandwidth.rates(); err != nil {
		return nil, err
	}
	if c.Ports, err = parsePorts(raw.Runtime.PortMappings, c.Sets, c.Log); err != nil {
		return nil, err
	}
	least := minMTU4
	if hasFamily(c.Sets, netip.IPv6Unspecified()) {
		least = minMTU6
	}
	if c.MTU = raw.MTU; c.MTU != 0 && (c.MTU < least || c.MTU > maxMTU) {
		return nil, invalid("mtu is %d: expected %d to %d, or 0 for the kernel's default", c.MTU, least, maxMTU)
	}
	c.Prev, err = raw.prev()
	return c, err
}

// parseForDelete reads only what DEL needs. A pod must be removable also when
// the configuration has been broken since it was made.
func parseForDelete(data []byte) (*config, error) {
	raw, err := decode(data)
	var e *types.Error
	if errors.As(err, &e) && e.Code == types.ErrDecodingFailure {
		return nil, err
	}
	c, berr := raw.base()
	if err = errors.Join(err, berr); err != nil {
		c.Log.Warn("configuration is not valid: removing the pod all the same", "err", err)
	}
	return c, nil
}

// decode reads the JSON. With an error about the type of a value, what could
// be read is returned as well.
func decode(data []byte) (raw rawConfig, err error) {
	err = json.Unmarshal(data, &raw)
	var wrong *json.UnmarshalTypeError
	switch {
	case errors.As(err, &wrong):
		return raw, invalid("%s is of type %s: expected %s", wrong.Field, wrong.Value, kindName(wrong.Type))
	case err != nil:
		return raw, types.NewError(types.ErrDecodingFailure, "configuration is not valid JSON: "+err.Error(), "")
	}
	return raw, nil
}

func kindName(t reflect.Type) string {
	switch t.Kind() {
	case reflect.String:
		return "a string"
	case reflect.Int, reflect.Uint64:
		return "a whole number"
	case reflect.Bool:
		return "true or false"
	case reflect.Slice:
		return "a list"
	default:
		return "an object"
	}
}

// base checks what every verb needs. The configuration it returns is usable
// for DEL also with an error: what could be understood is in it.
func (raw rawConfig) base() (*config, error) {
	c := &config{CNIVersion: raw.CNIVersion, Name: raw.Name, Bridge: defaultBridge, DataDir: ipam.DefaultDir, ReadyFile: raw.ReadyFile, PolicySocket: raw.Policy, PolicyFirst: raw.First, DNS: raw.DNS}
	level := slog.LevelInfo
	lerr := level.UnmarshalText([]byte(cmp.Or(raw.LogLevel, "info")))
	c.Log = slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: level}))
	if raw.IPAM.DataDir != "" {
		c.DataDir = raw.IPAM.DataDir
	}
	if lerr != nil {
		return c, invalid("logLevel is %q: expected debug, info, warn or error", raw.LogLevel)
	}
	if err := utils.ValidateNetworkName(raw.Name); err != nil {
		return c, invalid("name is %q: %s", raw.Name, err.Msg)
	}
	if raw.Bridge != nil {
		if err := utils.ValidateInterfaceName(*raw.Bridge); err != nil {
			return c, invalid("bridge is %q: expected the name of an interface: %s", *raw.Bridge, err.Msg)
		}
		c.Bridge = *raw.Bridge
	}
	switch raw.Mode {
	case "", modeBridge:
	case modeRouted:
		if c.Routed = true; raw.Bridge != nil {
			return c, invalid("bridge is %q with mode routed, which has none: leave one of the two out", *raw.Bridge)
		}
	default:
		return c, invalid("mode is %q: expected bridge or routed", raw.Mode)
	}
	if t := raw.IPAM.Type; t != "" && t != "braid" && t != "host-local" {
		return c, invalid("ipam.type is %q: expected braid or host-local, or the key left out: addresses come from ipam.ranges", t)
	}
	var err error
	if c.AntiSpoofing, err = raw.antiSpoofing(); err != nil {
		return c, err
	}
	c.Options, err = raw.check(c.Routed)
	return c, err
}

// all are the ranges of both forms.
func (raw rawIPAM) all() [][]rawRange {
	if raw.Subnet == "" {
		return raw.Ranges
	}
	return slices.Insert(slices.Clone(raw.Ranges), 0, []rawRange{raw.rawRange})
}

func (raw rawIPAM) sets() ([]ipam.Set, error) {
	if len(raw.Ranges) == 0 {
		return nil, invalid(`ipam.ranges is empty: expected a list of lists such as [[{"subnet": "10.244.1.0/24"}]]`)
	}
	sets := make([]ipam.Set, len(raw.Ranges))
	for i, list := range raw.Ranges {
		for j, r := range list {
			parsed, err := r.parse()
			if err != nil {
				return nil, invalid("ipam.ranges[%d][%d].%v", i, j, err)
			}
			sets[i] = append(sets[i], parsed)
		}
	}
	if err := ipam.Check(sets); err != nil {
		return nil, invalid("ipam.%v", err)
	}
	return sets, nil
}

func (r rawRange) parse() (ipam.Range, error) {
	subnet, err := netip.ParsePrefix(r.Subnet)
	if err != nil || subnet.Addr().Is4In6() {
		return ipam.Range{}, fmt.Errorf("subnet is %q: expected an address and a length such as 10.244.1.0/24", r.Subnet)
	}
	var parsed [3]netip.Addr
	for i, key := range []struct{ name, text string }{
		{"rangeStart", r.RangeStart}, {"rangeEnd", r.RangeEnd}, {"gateway", r.Gateway},
	} {
		if key.text == "" {
			continue
		}
		if parsed[i], err = netip.ParseAddr(key.text); err != nil {
			return ipam.Range{}, fmt.Errorf("%s is %q: expected an address of %s", key.name, key.text, subnet)
		}
	}
	return ipam.NewRange(subnet, parsed[0], parsed[1], parsed[2])
}

// routes checks the extra routes. A pod reaches nothing but its gateways
// directly, so no other next hop can work.
func (raw rawIPAM) routes(sets []ipam.Set) ([]link.Route, error) {
	var list []link.Route
	for i, r := range raw.Routes {
		dst, err := netip.ParsePrefix(r.Dst)
		if err != nil {
			return nil, invalid("ipam.routes[%d].dst is %q: expected a network such as 192.0.2.0/24", i, r.Dst)
		}
		dst = dst.Masked() // CRI-O's own configuration has host bits set
		if !hasFamily(sets, dst.Addr()) {
			return nil, invalid("ipam.routes[%d].dst is %s: expected a family that ipam.ranges has", i, dst)
		}
		if r.GW != "" && !isGateway(sets, r.GW) {
			return nil, invalid("ipam.routes[%d].gw is %q: expected the gateway of a range, or the key left out", i, r.GW)
		}
		if r.MTU < 0 || r.AdvMSS < 0 || r.Priority < 0 {
			return nil, invalid("ipam.routes[%d] has mtu %d, advmss %d, priority %d: expected numbers above zero, or the keys left out", i, r.MTU, r.AdvMSS, r.Priority)
		}
		list = append(list, link.Route{Dst: dst, MTU: r.MTU, AdvMSS: r.AdvMSS, Metric: r.Priority})
	}
	return list, nil
}

func hasFamily(sets []ipam.Set, a netip.Addr) bool {
	return slices.ContainsFunc(sets, func(s ipam.Set) bool { return s[0].Gateway.Is4() == a.Is4() })
}

func isGateway(sets []ipam.Set, text string) bool {
	for _, set := range sets {
		for _, r := range set {
			if gw, err := netip.ParseAddr(text); err == nil && gw == r.Gateway {
				return true
			}
		}
	}
	return false
}

// prev reads the result of the plugins before this one, or, for CHECK, of the
// ADD.
func (raw rawConfig) prev() (*types100.Result, error) {
	if raw.PrevResult == nil {
		return nil, nil
	}
	pc := &types.PluginConf{CNIVersion: raw.CNIVersion, RawPrevResult: raw.PrevResult}
	if err := version.ParsePrevResult(pc); err != nil {
		return nil, invalid("prevResult: expected a result of version %s: %v", raw.CNIVersion, err)
	}
	prev, err := types100.NewResultFromResult(pc.PrevResult)
	if err != nil {
		return nil, invalid("prevResult: expected a result of version %s: %v", raw.CNIVersion, err)
	}
	return prev, nil
}
