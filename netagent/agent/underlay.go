package agent

import (
	"errors"
	"fmt"
	"net/netip"
	"regexp"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/braidnet/braid/internal/kernel/link"
	"github.com/braidnet/braid/internal/kernel/route"
	"github.com/braidnet/braid/internal/model"
	"github.com/braidnet/braid/netagent/overlay"
)

// InterfaceConfig says which addresses of the machine carry packets between nodes; overlay.Select explains it.
type InterfaceConfig struct {
	Iface, IfaceRegex []string
	CanReach          string
	Public4, Public6  string
}

func (c *InterfaceConfig) given() bool {
	return len(c.Iface) > 0 || len(c.IfaceRegex) > 0 || c.CanReach != "" || c.Public4 != "" || c.Public6 != ""
}

// validateInterface names what is wrong with the settings themselves; whether anything matches, the machine decides.
func (c *Config) validateInterface() error {
	i := &c.Interface
	switch {
	case i.given() && c.Overlay == "none":
		return fmt.Errorf("iface, iface-regex, iface-can-reach, public-ip and public-ipv6 say how an overlay reaches other nodes, and overlay is none: leave them out")
	case slices.Contains(i.Iface, ""):
		return fmt.Errorf("iface: an empty word: give the name of a device, an address of this machine, or %s for the device of the default route", overlay.DefaultIface)
	}
	for _, word := range i.Iface {
		_, err := netip.ParseAddr(word)
		if err != nil && (len(word) >= unix.IFNAMSIZ || strings.ContainsAny(word, "/ \t")) {
			return fmt.Errorf("iface: %q is neither an address nor the name of a device", word)
		}
	}
	for _, text := range i.IfaceRegex {
		if _, err := regexp.Compile(text); err != nil || text == "" {
			return fmt.Errorf("iface-regex: %q is no regular expression (RE2 syntax): %w", text, errors.Join(err, emptyRegex(text)))
		}
	}
	for _, a := range []struct {
		setting, text string
		family        int // 0 = any
	}{{"iface-can-reach", i.CanReach, 0}, {"public-ip", i.Public4, 4}, {"public-ipv6", i.Public6, 6}} {
		if a.text == "" {
			continue
		}
		ip, err := netip.ParseAddr(a.text)
		if err != nil || ip.Zone() != "" || ip.Is4In6() || a.family == 4 && !ip.Is4() || a.family == 6 && ip.Is4() {
			return fmt.Errorf("%s: %q is no IP%s address", a.setting, a.text, map[int]string{4: "v4", 6: "v6"}[a.family])
		}
		if ip.IsUnspecified() || ip.IsLoopback() || ip.IsMulticast() || ip.IsLinkLocalUnicast() {
			return fmt.Errorf("%s: %s cannot be used between nodes", a.setting, ip)
		}
	}
	return nil
}

func emptyRegex(text string) error {
	if text == "" {
		return errors.New("it is empty, and would match everything")
	}
	return nil
}

// selection is what validated settings say.
func (c *Config) selection() overlay.Select {
	addr := func(text string) netip.Addr { a, _ := netip.ParseAddr(text); return a }
	i := c.Interface
	return overlay.Select{Iface: i.Iface, IfaceRegex: i.IfaceRegex, CanReach: addr(i.CanReach), Public4: addr(i.Public4), Public6: addr(i.Public6)}
}

// isPodLink reports whether a device is the overlay's, the pods' bridge, or a pod's.
func isPodLink(name string) bool {
	return strings.HasPrefix(name, link.Prefix) || name == link.PodBridge || strings.HasPrefix(name, link.VethPrefix)
}

// underlays chooses this node's addresses, and asks for the routes from them to the other nodes. It returns what the
// addresses come from.
func (o *podNetwork) underlays(t *link.Table, in *overlay.Input) (why string, err error) {
	m, err := o.machine(t)
	if err != nil {
		return "", err
	}
	choices, err := o.cfg.Select.Choose(m, in.Self.InternalIPs)
	if err != nil {
		return "", err
	}
	if !o.cfg.Select.Given() {
		in.Own, _ = overlay.Addresses(&model.Node{InternalIPs: in.Self.InternalIPs})
	}
	var reasons []string
	for _, c := range choices {
		if o.cfg.Select.Given() {
			in.Own = append(in.Own, c.Public)
		}
		u := overlay.Underlay{Addr: c.Addr, Dev: c.Dev}
		u.DevMTU, _ = t.MTU(c.Dev)
		if u.OnLink, err = route.OnLink(o.h, t, u.Dev, c.Addr.Is4()); err != nil {
			return "", err
		}
		in.Underlays = append(in.Underlays, u)
		if !slices.Contains(reasons, c.Why) {
			reasons = append(reasons, c.Why)
		}
	}
	o.ways(t, in)
	return strings.Join(reasons, "; "), nil
}

// ways asks the kernel about the route to each address of the other nodes. One that leads nowhere is not known: it may
// come back, and what cannot be reached shows elsewhere.
func (o *podNetwork) ways(t *link.Table, in *overlay.Input) {
	in.PathMTU, in.Ways = map[netip.Addr]int{}, map[string]bool{}
	for _, n := range in.Peers {
		list, _ := overlay.Addresses(n)
		for _, a := range list {
			i := slices.IndexFunc(in.Underlays, func(u overlay.Underlay) bool { return u.Addr.Is4() == a.Is4() })
			if i < 0 {
				continue
			}
			u, dev := in.Underlays[i], ""
			if in.Backend == "vxlan" || in.Backend == "ipip" { // whose devices are bound to the one below them
				dev = u.Dev
			}
			w, err := route.FIB(o.h, t, a, u.Addr, dev)
			if err != nil {
				w.MTU = 0
			}
			in.PathMTU[a] = w.MTU
			if w.Dev != "" {
				in.Ways[w.Dev] = true
			}
		}
	}
}

// machine reads what a selection is made from.
func (o *podNetwork) machine(t *link.Table) (m overlay.Machine, err error) {
	addrs, err := link.HostAddrs(o.h, t)
	if err != nil {
		return m, err
	}
	for _, name := range t.Names() {
		if isPodLink(name) {
			continue
		}
		d := overlay.Device{Name: name}
		for _, spare := range []bool{false, true} {
			for _, a := range addrs {
				if a.Dev == name && a.Spare == spare && !a.Addr.IsLinkLocalUnicast() {
					d.Addrs = append(d.Addrs, a.Addr)
					if spare {
						d.Spare++
					}
				}
			}
		}
		m.Devices = append(m.Devices, d)
	}
	s := o.cfg.Select
	if slices.Contains(s.Iface, overlay.DefaultIface) {
		m.Default = map[bool][]string{}
		for _, is4 := range []bool{true, false} {
			if m.Default[is4], err = route.Defaults(o.h, t, is4); err != nil {
				return m, err
			}
		}
	}
	if s.CanReach.IsValid() {
		if w, err := route.Get(o.h, t, s.CanReach, netip.Addr{}, ""); err == nil {
			m.ReachDev, m.ReachFrom = w.Dev, w.From
		}
	}
	return m, nil
}
