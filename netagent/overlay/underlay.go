package overlay

import (
	"fmt"
	"net/netip"
	"regexp"
	"slices"
	"strings"

	"github.com/braidnet/braid/internal/model"
	"github.com/braidnet/braid/netagent/overlay/peer"
)

// UnderlayAnnotation on a Node holds the addresses at which other nodes reach it, in place of all its
// InternalIPs: at most one of each family, separated by commas.
const UnderlayAnnotation = "braid.network/underlay"

// Addresses returns where other nodes reach a node, at most one address per family: what its annotation
// says, else its first InternalIPs. The error says what is wrong with the annotation, which then does not count.
func Addresses(n *model.Node) (list []netip.Addr, err error) {
	text, ok := n.Annotations[UnderlayAnnotation]
	if ok {
		if list, err = parseAddresses(text); err == nil {
			return list, nil
		}
		err = fmt.Errorf("annotation %s: %w; its InternalIPs are used", UnderlayAnnotation, err)
	}
	for _, is4 := range []bool{true, false} {
		if a, ok := n.Address(is4); ok {
			list = append(list, a)
		}
	}
	return list, err
}

func parseAddresses(text string) (list []netip.Addr, err error) {
	for word := range strings.SplitSeq(text, ",") {
		a, err := netip.ParseAddr(strings.TrimSpace(word))
		if err != nil {
			return nil, fmt.Errorf("%q is no IP address", word)
		}
		if reason := special(a); reason != "" {
			return nil, fmt.Errorf("%s %s", a, reason)
		}
		if slices.ContainsFunc(list, func(o netip.Addr) bool { return o.Is4() == a.Is4() }) {
			return nil, fmt.Errorf("two addresses of %s", peer.Family(a.Is4()))
		}
		list = append(list, a)
	}
	return list, nil
}

// Select says which of the machine's addresses carry pods' packets. Its zero value takes the Node's
// InternalIPs. The fields are the settings of the same names.
type Select struct {
	Iface      []string // names of devices, addresses, or DefaultIface
	IfaceRegex []string // of names or addresses of devices
	CanReach   netip.Addr
	Public4    netip.Addr
	Public6    netip.Addr
}

// DefaultIface in Select.Iface is the device of the default route. The kernel lets no device of that name
// have addresses.
const DefaultIface = "default"

// Given reports whether anything is selected by settings.
func (s Select) Given() bool { return s.byDevice() || s.Public4.IsValid() || s.Public6.IsValid() }

func (s Select) byDevice() bool {
	return len(s.Iface) > 0 || len(s.IfaceRegex) > 0 || s.CanReach.IsValid()
}

func (s Select) public(is4 bool) (a netip.Addr, setting string) {
	if is4 {
		return s.Public4, "public-ip"
	}
	return s.Public6, "public-ipv6"
}

// Device is a device of the machine.
type Device struct {
	Name  string
	Addrs []netip.Addr // in the kernel's order, those it would not choose as a source last
	Spare int          // how many of these it would not choose (deprecated, temporary, tentative)
}

// Machine is what a selection is made from.
type Machine struct {
	Devices   []Device          // those that can be an underlay, in the kernel's order
	Default   map[bool][]string // devices of default routes by family (true: IPv4), the preferred one first
	ReachDev  string            // by which Select.CanReach is reached, "" = not
	ReachFrom netip.Addr        // and from which address
}

// Choice is one address of the machine that carries packets between nodes.
type Choice struct {
	Addr   netip.Addr // on Dev
	Dev    string
	Public netip.Addr // what other nodes send to: Addr, unless a router translates
	Why    string     // the setting, for people
}

// candidate is a device that a setting names, for both families or for one; addr is valid where it names an address of it.
type candidate struct {
	dev    *Device
	addr   netip.Addr
	family string // as of peer.Family, "" = both
	why    string
}

func addressOf(d *Device, a netip.Addr, why string) candidate {
	return candidate{d, a, peer.Family(a.Is4()), why}
}

// Choose returns at most one address per family, IPv4 first. Each family takes the first that there is of:
//
//  1. iface, in its order: the address that is named, or one on the device that is named;
//  2. iface-regex, in its order: a device whose name or one of whose addresses matches;
//  3. iface-can-reach: the source and the device that the kernel would take;
//  4. only without all these: public-ip or public-ipv6, which must be on a device then, else the Node's InternalIP.
//
// On a device, the Node's InternalIP goes before others. An address that is named counts for its own family; its
// device counts for the other one where nothing else gives it an address. The error names what was looked for
// and what there is.
func (s Select) Choose(m Machine, internal []netip.Addr) (list []Choice, err error) {
	candidates, err := s.candidates(m)
	if err != nil {
		return nil, err
	}
	for _, is4 := range []bool{true, false} {
		c, ok := first(candidates, is4, internal)
		if !s.byDevice() {
			if c, ok, err = s.byAddress(m, is4, internal); err != nil {
				return nil, err
			}
		}
		public, setting := s.public(is4)
		switch {
		case ok && public.IsValid() && public != c.Addr:
			c.Public, c.Why = public, fmt.Sprintf("%s; others send to %s of %s", c.Why, public, setting)
		case !ok && public.IsValid():
			return nil, fmt.Errorf("%s: %s: the device that %s selects has no %s address; %s", setting, public, s.looked(), peer.Family(is4), m)
		}
		if ok {
			list = append(list, c)
		}
	}
	if len(list) == 0 && s.Given() {
		return nil, fmt.Errorf("%s: nothing matches; %s", s.looked(), m)
	}
	return list, nil
}

// looked says what was looked for, beginning with the name of a setting.
func (s Select) looked() string {
	var words []string
	if len(s.Iface) > 0 {
		words = append(words, "iface: "+strings.Join(s.Iface, ", "))
	}
	for _, r := range s.IfaceRegex {
		words = append(words, fmt.Sprintf("iface-regex: %q", r))
	}
	if s.CanReach.IsValid() {
		words = append(words, "iface-can-reach: "+s.CanReach.String())
	}
	return strings.Join(words, ", ")
}

// String lists devices and addresses.
func (m Machine) String() string {
	var words []string
	for _, d := range m.Devices {
		text := d.Name + " has no address"
		if len(d.Addrs) > 0 {
			text = d.Name + " has " + strings.Trim(fmt.Sprint(d.Addrs), "[]")
		}
		words = append(words, text)
	}
	if len(words) == 0 {
		return "this machine has no devices besides loopback"
	}
	return "of this machine, " + strings.Join(words, "; ")
}

func (m Machine) device(name string) *Device {
	i := slices.IndexFunc(m.Devices, func(d Device) bool { return d.Name == name })
	if i < 0 {
		return nil
	}
	return &m.Devices[i]
}

func (m Machine) owner(a netip.Addr) *Device {
	i := slices.IndexFunc(m.Devices, func(d Device) bool { return slices.Contains(d.Addrs, a) })
	if i < 0 {
		return nil
	}
	return &m.Devices[i]
}

// candidates lists what the settings that name devices lead to, in order.
func (s Select) candidates(m Machine) (list []candidate, err error) {
	for _, word := range s.Iface {
		why := "setting iface: " + word
		if a, err := netip.ParseAddr(word); err == nil {
			list = append(list, addressOf(m.owner(a), a, why))
			continue
		}
		list = append(list, candidate{dev: m.device(word), why: why})
		if word == DefaultIface {
			for _, is4 := range []bool{true, false} {
				for _, name := range m.Default[is4] {
					list = append(list, candidate{dev: m.device(name), family: peer.Family(is4), why: why})
				}
			}
		}
	}
	for _, text := range s.IfaceRegex {
		r, err := regexp.Compile(text)
		if err != nil {
			return nil, fmt.Errorf("iface-regex: %q: %w", text, err)
		}
		for i := range m.Devices {
			d, why := &m.Devices[i], fmt.Sprintf("setting iface-regex: %q", text)
			if r.MatchString(d.Name) {
				list = append(list, candidate{dev: d, why: why})
				continue
			}
			for _, a := range d.Addrs {
				if r.MatchString(a.String()) {
					list = append(list, addressOf(d, a, why))
				}
			}
		}
	}
	if s.CanReach.IsValid() && m.ReachDev != "" {
		list = append(list, candidate{m.device(m.ReachDev), m.ReachFrom, peer.Family(s.CanReach.Is4()), "setting iface-can-reach: " + s.CanReach.String()})
	}
	return slices.DeleteFunc(list, func(c candidate) bool { return c.dev == nil }), nil
}

// first returns the choice of a family among candidates.
func first(list []candidate, is4 bool, internal []netip.Addr) (Choice, bool) {
	for _, other := range []bool{false, true} { // devices of addresses of the other family come last
		for _, c := range list {
			if (c.family != "" && c.family != peer.Family(is4)) != other {
				continue
			}
			a := c.addr
			if !a.IsValid() || other {
				a = c.dev.pick(is4, internal)
			}
			if a.IsValid() {
				return Choice{Addr: a, Dev: c.dev.Name, Public: a, Why: c.why}, true
			}
		}
	}
	return Choice{}, false
}

// pick returns the address of a family that a device is used by; invalid when it has none.
func (d *Device) pick(is4 bool, internal []netip.Addr) netip.Addr {
	for _, a := range internal {
		if a.Is4() == is4 && slices.Contains(d.Addrs, a) {
			return a
		}
	}
	for _, a := range d.Addrs[:len(d.Addrs)-d.Spare] {
		if a.Is4() == is4 {
			return a
		}
	}
	return netip.Addr{}
}

// byAddress returns the choice of a family where no setting names a device.
func (s Select) byAddress(m Machine, is4 bool, internal []netip.Addr) (Choice, bool, error) {
	if public, setting := s.public(is4); public.IsValid() {
		d := m.owner(public)
		if d == nil {
			return Choice{}, false, fmt.Errorf("%s: no device has %s: where a router translates it, say with iface which device it is; %s", setting, public, m)
		}
		return Choice{Addr: public, Dev: d.Name, Public: public, Why: "setting " + setting}, true, nil
	}
	for _, a := range internal {
		if a.Is4() != is4 {
			continue
		}
		if d := m.owner(a); d != nil {
			return Choice{Addr: a, Dev: d.Name, Public: a, Why: "InternalIP of the Node"}, true, nil
		}
		break
	}
	return Choice{}, false, nil
}
