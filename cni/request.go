package main

import (
	"net"
	"net/netip"
	"os"
	"strings"

	"github.com/braidnet/braid/cni/ipam"
	"github.com/containernetworking/cni/pkg/types"
)

// rawRuntime is what a runtime says about one pod (CNI conventions), each key
// only when the configuration lists it among its capabilities.
type rawRuntime struct {
	PortMappings []rawPort    `json:"portMappings"`
	Bandwidth    rawBandwidth `json:"bandwidth"`
	IPs          []string     `json:"ips"`
	MAC          string       `json:"mac"`
	IPRanges     [][]rawRange `json:"ipRanges"`
	DNS          struct {
		Servers  []string `json:"servers"`
		Searches []string `json:"searches"`
		Options  []string `json:"options"`
	} `json:"dns"`
}

// rawArgs are wishes that stand in the configuration itself.
type rawArgs struct {
	CNI struct {
		IPs []string `json:"ips"`
		MAC string   `json:"mac"`
	} `json:"cni"`
}

// request reads what a configuration asks for besides what every pod gets.
func (c *config) request(raw rawConfig) error {
	for _, from := range []struct {
		key string
		ips []string
		mac string
	}{{"", nil, raw.MAC}, {"args.cni.", raw.Args.CNI.IPs, raw.Args.CNI.MAC}, {"runtimeConfig.", raw.Runtime.IPs, raw.Runtime.MAC}} {
		if err := c.askIPs(from.key+"ips", from.ips); err != nil {
			return err
		}
		if err := c.askMAC(from.key+"mac", from.mac); err != nil {
			return err
		}
	}
	if file := raw.IPAM.ResolvConf; file != "" && c.DNS.IsEmpty() {
		var err error
		if c.DNS, err = resolvConf(file); err != nil {
			return invalid("ipam.resolvConf: %v", err)
		}
	}
	if d := raw.Runtime.DNS; len(d.Servers)+len(d.Searches)+len(d.Options) > 0 {
		c.DNS = types.DNS{Nameservers: d.Servers, Search: d.Searches, Options: d.Options}
	}
	return nil
}

// requestArgs reads the old form of such wishes, CNI_ARGS. Where two say
// different things about the MAC, the configuration has it.
func (c *config) requestArgs(cniArgs string) error {
	args := map[string]string{}
	for pair := range strings.SplitSeq(cniArgs, ";") {
		key, value, _ := strings.Cut(pair, "=")
		args[key] = value
	}
	if ip := args["IP"]; ip != "" {
		if err := c.askIPs("IP in CNI_ARGS", strings.Split(ip, ",")); err != nil {
			return err
		}
	}
	if c.MAC != nil {
		return nil
	}
	return c.askMAC("MAC in CNI_ARGS", args["MAC"])
}

// askIPs takes addresses with or without the length of their network.
func (c *config) askIPs(key string, list []string) error {
	for _, text := range list {
		ip, _, _ := strings.Cut(text, "/")
		a, err := netip.ParseAddr(ip)
		if _, perr := netip.ParsePrefix(text); err != nil || a.Zone() != "" || perr != nil && ip != text {
			return invalid("%s has %q: expected an address such as 10.244.1.7", key, text)
		}
		set, ok := setOf(c.Sets, a)
		if !ok {
			return invalid("%s has %s: expected an address of ipam.ranges, %v", key, a, c.Sets)
		}
		for _, other := range c.IPs {
			if s, _ := setOf(c.Sets, other); s == set && other != a {
				return invalid("%s has %s besides %s: expected one address of each list in ipam.ranges, as a pod gets no more", key, a, other)
			}
		}
		c.IPs = append(c.IPs, a)
	}
	return nil
}

func (c *config) askMAC(key, text string) error {
	if text == "" {
		return nil
	}
	mac, err := net.ParseMAC(text)
	if err != nil || len(mac) != 6 || mac[0]&1 != 0 || mac.String() == "00:00:00:00:00:00" {
		return invalid("%s is %q: expected the hardware address of one interface, such as 02:00:00:00:00:01", key, text)
	}
	c.MAC = mac
	return nil
}

// setOf finds the set that has an address.
func setOf(sets []ipam.Set, a netip.Addr) (int, bool) {
	for i, s := range sets {
		if s.Contains(a) {
			return i, true
		}
	}
	return 0, false
}

// resolvConf reads a resolv.conf(5): of words that come again the last counts, but for name servers.
func resolvConf(file string) (d types.DNS, err error) {
	data, err := os.ReadFile(file)
	if err != nil {
		return d, err
	}
	for line := range strings.Lines(string(data)) {
		words := strings.Fields(line)
		if len(words) < 2 || strings.ContainsAny(words[0][:1], "#;") {
			continue
		}
		switch words[0] {
		case "nameserver":
			d.Nameservers = append(d.Nameservers, words[1])
		case "domain":
			d.Domain = words[1]
		case "search":
			d.Search = words[1:]
		case "options":
			d.Options = append(d.Options, words[1:]...)
		}
	}
	return d, nil
}
