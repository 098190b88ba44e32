package agent

import (
	"fmt"
	"slices"

	"github.com/braidnet/braid/internal/desired"
	"github.com/braidnet/braid/internal/kernel/link"
	"github.com/braidnet/braid/internal/kernel/wg"
	"github.com/braidnet/braid/internal/model"
	"github.com/braidnet/braid/netagent/overlay"
)

// wireguardPath is the device of overlay wireguard as it is at work; dev is nil while there is none.
type wireguardPath struct {
	dev   *wg.Device
	index int // of the device
	keys  *keyring
}

func (p *wireguardPath) close() {
	if p.dev != nil {
		_ = p.dev.Close()
	}
	p.dev, p.index = nil, 0
}

// served tells the plan who serves the device: one that this process serves is a TUN device to the kernel.
func (p *wireguardPath) served(net *desired.Network) {
	if p.dev == nil || !p.dev.User() {
		return
	}
	for i := range net.Links {
		if net.Links[i].Kind == desired.KindWireGuard {
			net.Links[i].Kind = desired.KindTUN
		}
	}
}

// encrypt makes the wanted WireGuard device know its peers, or gives it up when none is wanted. The error
// is of reading the devices; what else fails is in w, and what belongs on the device is then left alone.
func (o *podNetwork) encrypt(w *writer, net *desired.Network, self *model.Node) (err error) {
	if net.WireGuard == nil {
		o.wg.close()
		return nil
	}
	before := len(w.changes)
	if err := o.wg.become(w, net, self, o.cfg.UserWireGuard); err != nil {
		w.errs = append(w.errs, err)
		w.failed[net.WireGuard.Dev] = true
	}
	o.wg.served(net)
	if len(w.changes) > before {
		if w.table, err = link.ReadTable(w.h); err == nil {
			o.wg.index = w.table.Index(net.WireGuard.Dev)
		}
	}
	return err
}

func (p *wireguardPath) become(w *writer, net *desired.Network, self *model.Node, user bool) error {
	want := net.WireGuard
	if p.dev != nil && (p.dev.Dead() || w.table.Index(want.Dev) != p.index) {
		p.close()
	}
	if p.dev == nil {
		if err := sweepOther(w, want.Dev, user); err != nil {
			return err
		}
		mtu := net.Links[slices.IndexFunc(net.Links, func(l desired.Link) bool { return l.Name == want.Dev })].MTU
		existed := w.table.Index(want.Dev) != 0
		dev, err := wg.Open(w.h, want.Dev, mtu, wg.Options{User: user, NS: w.ns})
		if err != nil {
			return err
		}
		p.dev, p.index = dev, w.table.Index(want.Dev)
		if !existed {
			w.changes = append(w.changes, fmt.Sprintf("added device %s, served by %s: %s", want.Dev, p.by(), want.Origin))
		}
	}
	published, _ := overlay.PublicKeys(self) // what is wrong there is written anew
	key, done, err := p.keys.current(published)
	w.changes = append(w.changes, done...)
	if err != nil {
		return err
	}
	done, err = p.dev.Apply(*want, key)
	w.changes = append(w.changes, done...)
	return err
}

// by says who serves the device.
func (p *wireguardPath) by() string {
	if p.dev != nil && p.dev.User() {
		return "this process, since the kernel has no WireGuard"
	}
	return "the kernel"
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
