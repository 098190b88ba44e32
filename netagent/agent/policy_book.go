package agent

import (
	"encoding/json"
	"errors"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"

	"github.com/braidnet/braid/internal/model"
	"github.com/braidnet/braid/netagent/policy"
)

// attachmentBook remembers the attachments of pods over a restart of the agent, a file for each link: until the
// kubelet has reported a new pod's addresses, nobody else could tell the next agent of them, and it would cut
// the pod off. It is in the run folder, since links do not outlive a restart of the machine either.
type attachmentBook struct {
	log *slog.Logger
	dir string // empty: nothing is remembered
}

func attachmentsDir(runDir string) string { return filepath.Join(runDir, "attachments") }

// path is empty for what cannot be the name of a link.
func (b *attachmentBook) path(link string) string {
	if b.dir == "" || link != filepath.Base(link) || link == "." || link == ".." {
		return ""
	}
	return filepath.Join(b.dir, link)
}

// save remembers an attachment. A failure costs the pod its connections for a moment, and only if the agent is
// restarted just then: it is logged, and no more.
func (b *attachmentBook) save(a policy.Attachment) {
	path := b.path(a.Link)
	if path == "" {
		return
	}
	data, err := json.Marshal(attachment{a.Pod.Namespace, a.Pod.Name, a.UID, a.Link, a.Addrs})
	if err == nil {
		err = os.MkdirAll(b.dir, 0o700)
	}
	if err == nil {
		err = os.WriteFile(path+".new", data, 0o600)
	}
	if err == nil {
		err = os.Rename(path+".new", path)
	}
	if err != nil {
		b.log.Warn("an attachment will not be known to the next agent", "pod", a.Pod, "link", a.Link, "err", err)
	}
}

// forget removes what was remembered of a link.
func (b *attachmentBook) forget(link string) {
	if path := b.path(link); path != "" {
		if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			b.log.Warn("forget an attachment", "link", link, "err", err)
		}
	}
}

// load returns what an earlier agent remembered. What cannot be read is removed.
func (b *attachmentBook) load() (out []policy.Attachment) {
	entries, err := os.ReadDir(b.dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) && b.dir != "" {
		b.log.Warn("read the attachments of the agent before", "err", err)
	}
	for _, e := range entries {
		var x attachment
		data, err := os.ReadFile(filepath.Join(b.dir, e.Name()))
		if err == nil {
			err = json.Unmarshal(data, &x)
		}
		if err != nil || x.Name == "" || x.Link != e.Name() || len(x.Addrs) == 0 {
			b.log.Warn("an attachment of the agent before cannot be read", "file", filepath.Join(b.dir, e.Name()), "err", err)
			_ = os.Remove(filepath.Join(b.dir, e.Name()))
			continue
		}
		out = append(out, policy.Attachment{Pod: model.Key{Namespace: x.Namespace, Name: x.Name}, UID: x.UID, Link: x.Link, Addrs: x.Addrs})
	}
	return out
}
