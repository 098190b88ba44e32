package agent

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/braidnet/braid/internal/desired"
	"github.com/braidnet/braid/internal/kernel/link"
	"github.com/braidnet/braid/internal/kernel/netns"
	"github.com/braidnet/braid/internal/kernel/wg"
	"github.com/braidnet/braid/netagent/overlay"
	"github.com/braidnet/braid/netagent/overlay/peer"
	"github.com/braidnet/braid/netagent/overlay/wireguard"
)

// wireguardPath is overlay wireguard as it is at work.
type wireguardPath struct {
	keys   *keyring
	main   wireguardDevice
	detour wireguardDevice
	change keyChange
}

// wireguardDevice is a device at work; dev is nil while there is none.
type wireguardDevice struct {
	dev   *wg.Device
	index int
}

func (d *wireguardDevice) close() {
	if d.dev != nil {
		_ = d.dev.Close()
	}
	d.dev, d.index = nil, 0
}

func (d *wireguardDevice) user() bool { return d.dev != nil && d.dev.User() }

func (p *wireguardPath) close() {
	p.main.close()
	p.detour.close()
}

// served tells the plan who serves the devices: what this process serves is a TUN device to the kernel.
func (p *wireguardPath) served(net *desired.Network) {
	for i := range net.Links {
		l := &net.Links[i]
		if l.Name == wireguard.Device && p.main.user() || l.Name == wireguard.Detour && p.detour.user() {
			l.Kind = desired.KindTUN
		}
	}
}

// facts tells the plan what it has to know of this node's keys and sessions. The device of a detour that is under way when
// an agent starts is taken over first: what is sent by it must not go back before its time.
func (p *wireguardPath) facts(h *netlink.Handle, ns *netns.NS, t *link.Table, user bool) (out peer.WireGuard, err error) {
	out.Phase = p.keys.detour().Phase
	takesOver := slices.ContainsFunc(t.Ours, func(d link.Device) bool { return d.Name == wireguard.Detour && d.Kind == desired.KindWireGuard })
	if p.detour.dev == nil && takesOver && !user {
		dev, err := wg.Open(h, wireguard.Detour, 0, wg.Options{NS: ns})
		if err != nil {
			return out, err
		}
		p.detour = wireguardDevice{dev, t.Index(wireguard.Detour)}
	}
	now := time.Now()
	p.change.look(now, p.main.dev, p.detour.dev)
	out.Up = p.change.up(now)
	return out, nil
}

// serve makes the wanted WireGuard devices, or gives up those that are not wanted. The error is of reading the devices;
// what else fails is in w, and what belongs on such a device is then left alone.
func (o *podNetwork) serve(w *writer, net *desired.Network) (err error) {
	if net.WireGuard == nil {
		o.wg.close()
		return nil
	}
	before := len(w.changes)
	devices := map[string]*wireguardDevice{wireguard.Device: &o.wg.main}
	if net.Detour != nil {
		devices[wireguard.Detour] = &o.wg.detour
	}
	for _, l := range net.Links {
		if d := devices[l.Name]; d != nil {
			if err := d.become(w, l, o.cfg.UserWireGuard); err != nil {
				w.errs = append(w.errs, err)
				w.failed[l.Name] = true
			}
		}
	}
	o.wg.served(net)
	if len(w.changes) > before {
		if w.table, err = link.ReadTable(w.h); err == nil {
			for name, d := range devices {
				d.index = w.table.Index(name)
			}
		}
	}
	return err
}

func (d *wireguardDevice) become(w *writer, want desired.Link, user bool) error {
	if d.dev != nil && (d.dev.Dead() || w.table.Index(want.Name) != d.index) {
		d.close()
	}
	if d.dev != nil {
		return nil
	}
	if err := sweepOther(w, want.Name, user); err != nil {
		return err
	}
	existed := w.table.Index(want.Name) != 0
	dev, err := wg.Open(w.h, want.Name, want.MTU, wg.Options{User: user, NS: w.ns})
	if err != nil {
		return err
	}
	d.dev, d.index = dev, w.table.Index(want.Name)
	if !existed {
		w.changes = append(w.changes, fmt.Sprintf("added device %s, served by %s: %s", want.Name, d.by(), want.Origin))
	}
	return nil
}

// by says who serves the device.
func (d *wireguardDevice) by() string {
	if d.user() {
		return "this process, since the kernel has no WireGuard"
	}
	return "the kernel"
}

// replacing says how far this node is with replacing its key, and whom it waits for.
func (p *wireguardPath) replacing() string {
	d := p.keys.detour()
	switch late := p.change.late; {
	case d.Phase == peer.Steady:
		return ""
	case len(late) > 0:
		return fmt.Sprintf("; key being replaced (%s), waits for %s", d.Phase, strings.Join(late, ", "))
	}
	return fmt.Sprintf("; key being replaced (%s)", d.Phase)
}

// encrypt goes on with keys that are replaced, and makes the devices, which are up, know their peers. What fails is in w.
func (o *podNetwork) encrypt(w *writer, net *desired.Network, in overlay.Input) {
	if net.WireGuard == nil {
		return
	}
	p := &o.wg
	ways := overlay.Ways(in)
	done, err := p.keys.step(crossing{published: p.published(in), busy: net.Detour != nil || p.detour.dev != nil, waits: p.change.waits(ways, time.Now())})
	w.changes = append(w.changes, done...)
	failed := func(err error) bool {
		if err != nil {
			w.errs = append(w.errs, err)
		}
		return err != nil
	}
	key, detourKey := p.keys.private()
	if failed(err) || key == (desired.WGKey{}) {
		w.failed[wireguard.Device] = true
		return
	}
	ready := net.Detour != nil && !w.failed[wireguard.Detour]
	if ready {
		// What comes in must have a way on before anybody can make a session, and send.
		changed, err := link.Hand(w.h, w.table, wireguard.Detour, wireguard.Device)
		if changed {
			w.changes = append(w.changes, fmt.Sprintf("hand to %s what comes in by %s: %s", wireguard.Device, wireguard.Detour, net.Detour.Origin))
		}
		if ready = !failed(err); ready {
			done, err := p.detour.dev.Apply(net.Detour.WireGuard, detourKey)
			w.changes = append(w.changes, done...)
			ready = !failed(err)
		}
	}
	if !w.failed[wireguard.Device] {
		done, err := p.main.dev.Apply(*net.WireGuard, key)
		w.changes = append(w.changes, done...)
		if failed(err) {
			w.failed[wireguard.Device] = true
		}
		p.change.keyed = p.main.dev.Keyed()
	}
	p.steer(w, net, ways, ready)
}

// steer sends by the detour what is to go there, and gives the detour up when it is not wanted.
func (p *wireguardPath) steer(w *writer, net *desired.Network, ways []wireguard.Way, ready bool) {
	want := desired.Steering{}
	if ready {
		want = net.Detour.Steer
	}
	changed, err := link.Steer(w.h, w.table, wireguard.Device, wireguard.Detour, want)
	if changed {
		w.changes = append(w.changes, fmt.Sprintf("send by %s what leaves by %s, to %s: keys that are being replaced", wireguard.Detour, wireguard.Device, want))
	}
	if err != nil && net.Detour != nil { // a kernel that cannot do it is told of when it is needed
		w.errs = append(w.errs, err)
		return
	}
	p.change.moved(ways, ready, time.Now())
	if net.Detour == nil && p.detour.user() { // the kernel's is swept with other devices
		p.detour.close()
		w.changes = append(w.changes, fmt.Sprintf("deleted device %s: no key is being replaced", wireguard.Detour))
		if table, err := link.ReadTable(w.h); err == nil {
			w.table = table
		}
	} else if net.Detour == nil {
		p.detour.close()
	}
}

// published reports whether the cluster knows this node's keys as they are.
func (p *wireguardPath) published(in overlay.Input) bool {
	keys, err := overlay.PublicKeys(in.Self)
	detour, err2 := overlay.PublicDetour(in.Self)
	return err == nil && err2 == nil && slices.Equal(keys, p.keys.public()) && detour == p.keys.detour()
}

// sweepOther removes a device of the name and of another kind, which an agent on another kernel left.
func sweepOther(w *writer, name string, user bool) error {
	for _, d := range w.table.Ours {
		if d.Name != name || d.Kind == desired.KindWireGuard && !user {
			continue
		}
		if err := link.DeleteLink(w.h, d); err != nil {
			return err
		}
		w.changes = append(w.changes, fmt.Sprintf("deleted %s: it is not served any more", d))
		var err error
		if w.table, err = link.ReadTable(w.h); err != nil {
			return err
		}
	}
	return nil
}
