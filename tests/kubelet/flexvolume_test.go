package kubelet

import (
	"context"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"syscall"
	"testing"

	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	v1 "k8s.io/api/core/v1"
	"k8s.io/kubernetes/pkg/volume"
)

func expectAttached(t *testing.T, expected ...string) {
	t.Helper()
	if expected == nil {
		expected = []string{}
	}
	if found := attachments(t); !reflect.DeepEqual(found, expected) {
		t.Fatalf("attached: %v, expected: %v", found, expected)
	}
}

func expectMounted(t *testing.T, k *kubelet, pod *v1.Pod, fsType string) {
	t.Helper()
	line := k.mounted(pod)
	if !strings.HasPrefix(line, "/dev/nbd") || !strings.Contains(line, " "+fsType+" rw") {
		t.Fatalf("%s: mounted: %q", pod.Name, line)
	}
}

func write(t *testing.T, dir, text string) {
	t.Helper()
	file, err := os.Create(filepath.Join(dir, "file"))
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	if _, err := file.WriteString(text); err != nil {
		t.Fatal(err)
	}
	if err := file.Sync(); err != nil {
		t.Fatal(err)
	}
}

func expectFile(t *testing.T, dir, text string) {
	t.Helper()
	found, err := os.ReadFile(filepath.Join(dir, "file"))
	if err != nil || string(found) != text {
		t.Fatalf("%s: %q, %v", dir, found, err)
	}
}

// calledAttach tells whether the driver says that attaching is a call of its own.
func calledAttach(t *testing.T) bool { return setting(t, "DRIVER_ATTACH") == "true" }

// A volume from its first pod to its last: made, formatted, shared by two pods of the node, given back, and found again.
func TestLife(t *testing.T) {
	claim := "life-" + setting(t, "DRIVER_ATTACH")
	attachment := "flex.kube-" + claim
	k := start(t, t.TempDir(), cluster(volumes(claim, "xfs", nil)))
	defer k.end()
	began := mark(t)
	one, two, three := newPod("one", claim), newPod("two", claim), newPod("three", claim)
	k.run(one)
	expectMounted(t, k, one, "xfs")
	expectAttached(t, attachment)
	write(t, k.dir(one), "data of one")
	info, err := os.Stat(k.dir(one))
	if err != nil {
		t.Fatal(err)
	}
	if group := info.Sys().(*syscall.Stat_t).Gid; int64(group) != fsGroup {
		t.Fatalf("the volume belongs to group %d", group)
	}
	k.run(two)
	expectMounted(t, k, two, "xfs")
	expectFile(t, k.dir(two), "data of one")
	k.remove(one)
	expectAttached(t, attachment)
	expectFile(t, k.dir(two), "data of one")
	k.remove(two)
	k.until("detach", func() bool { return len(attachments(t)) == 0 })
	expected := []string{"mount", "mount", "unmount", "unmount"}
	if calledAttach(t) {
		expected = []string{"attach", "waitforattach", "mountdevice", "mount", "waitforattach", "mount",
			"unmount", "unmount", "unmountdevice", "detach"}
	}
	// A call is logged when it ends, which is later than what it does.
	k.until("the last call", func() bool { return len(calls(t, began)) >= len(expected) })
	if made := calls(t, began); !reflect.DeepEqual(made, expected) {
		t.Fatalf("calls: %v, expected: %v", made, expected)
	}
	k.run(three)
	expectFile(t, k.dir(three), "data of one")
	k.remove(three)
	k.until("detach", func() bool { return len(attachments(t)) == 0 })
}

// A claim grows while a pod uses it: the controller's part is one call, the node's part is kubelet's own doing.
func TestExpand(t *testing.T) {
	for _, fsType := range []string{"ext4", "xfs"} {
		t.Run(fsType, func(t *testing.T) { expand(t, fsType) })
	}
}

func expand(t *testing.T, fsType string) {
	claim := "grow-" + fsType + "-" + setting(t, "DRIVER_ATTACH")
	client := cluster(volumes(claim, fsType, nil))
	k := start(t, t.TempDir(), client)
	defer k.end()
	pod := newPod("pod", claim)
	k.run(pod)
	write(t, k.dir(pod), "before")
	size := func() int64 {
		var stat syscall.Statfs_t
		if err := syscall.Statfs(k.dir(pod), &stat); err != nil {
			t.Fatal(err)
		}
		return int64(stat.Blocks) * stat.Bsize
	}
	before := size()
	volumes := client.CoreV1().PersistentVolumes()
	pv, err := volumes.Get(context.TODO(), "pv-"+claim, metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	spec := volume.NewSpecFromPersistentVolume(pv, false)
	plugin, err := k.plugins.FindExpandablePluginBySpec(spec)
	if err != nil {
		t.Fatal(err)
	}
	larger := resource.MustParse("2Gi")
	reached, err := plugin.ExpandVolumeDevice(spec, larger, pv.Spec.Capacity[v1.ResourceStorage])
	if err != nil || reached.Cmp(larger) != 0 {
		t.Fatalf("expandvolume: %v, %v", reached, err)
	}
	pv = pv.DeepCopy()
	pv.Spec.Capacity[v1.ResourceStorage] = larger
	if _, err := volumes.Update(context.TODO(), pv, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	// kubelet looks at a pod's claims anew whenever it comes back to the pod.
	k.until("growth of the file system", func() bool {
		if err := k.manager.WaitForAttachAndMount(pod); err != nil {
			t.Fatal(err)
		}
		return size() > before+(900<<20)
	})
	k.until("growth of the claim", func() bool {
		found, err := client.CoreV1().PersistentVolumeClaims(namespace).Get(context.TODO(), claim, metav1.GetOptions{})
		if err != nil {
			t.Fatal(err)
		}
		capacity := found.Status.Capacity[v1.ResourceStorage]
		return capacity.Cmp(larger) == 0
	})
	expectFile(t, k.dir(pod), "before")
	k.remove(pod)
	k.until("detach", func() bool { return len(attachments(t)) == 0 })
}

// kubelet is killed while a pod has its volume, and the pod is gone when it comes back: it finds the mount, knows nothing of
// the volume's options, and has it unmounted.
func TestKubeletRestart(t *testing.T) {
	claim := "restart-" + setting(t, "DRIVER_ATTACH")
	root, client := t.TempDir(), cluster(volumes(claim, "ext4", nil))
	pod := newPod("pod", claim)
	first := start(t, root, client)
	first.run(pod)
	write(t, first.dir(pod), "kept")
	first.end()
	// The driver is upgraded meanwhile.
	tool(t, setting(t, "DRIVER"), "install", "--dir", setting(t, "PLUGIN_DIR"))
	// It is there when the next kubelet begins: that one mounts nothing twice.
	second := start(t, root, client, pod)
	if err := second.manager.WaitForAttachAndMount(pod); err != nil {
		t.Fatal(err)
	}
	expectFile(t, second.dir(pod), "kept")
	second.end()
	third := start(t, root, client)
	defer third.end()
	third.until("unmount of what nobody wants", func() bool { return third.mounted(pod) == "" })
	if calledAttach(t) {
		// This kubelet forgets what it has staged and attached for a pod that it only found: the next pod takes it over.
		next := newPod("next", claim)
		third.run(next)
		expectFile(t, third.dir(next), "kept")
		third.remove(next)
	}
	third.until("detach", func() bool { return len(attachments(t)) == 0 })
}

// What is on a volume does not fit what is asked for: the pod is told so, nothing is touched, and nothing is left.
func TestForeignFileSystem(t *testing.T) {
	attach := setting(t, "DRIVER_ATTACH")
	claim := "foreign-" + attach
	same := map[string]string{"volumeID": "kube-" + claim}
	client := cluster(volumes(claim, "ext4", nil), volumes("other-"+attach, "xfs", same))
	k := start(t, t.TempDir(), client)
	defer k.end()
	first := newPod("first", claim)
	k.run(first)
	write(t, k.dir(first), "precious")
	k.remove(first)
	k.until("detach", func() bool { return len(attachments(t)) == 0 })
	wrong := newPod("wrong", "other-"+attach)
	k.pods.AddPod(wrong)
	k.until("the event", func() bool { return k.events.have("file system of type ext4, and xfs is asked for") })
	k.pods.DeletePod(wrong)
	if line := k.mounted(wrong); line != "" {
		t.Fatalf("mounted: %s", line)
	}
	k.until("detach", func() bool { return len(attachments(t)) == 0 })
	again := newPod("again", claim)
	k.run(again)
	expectFile(t, k.dir(again), "precious")
	k.remove(again)
	k.until("detach", func() bool { return len(attachments(t)) == 0 })
}

// A volume that has to exist and does not, and options that cannot be meant: it is told what is wrong.
func TestOptions(t *testing.T) {
	attach := setting(t, "DRIVER_ATTACH")
	k := start(t, t.TempDir(), cluster(
		volumes("none-"+attach, "ext4", map[string]string{"size": ""}),
		volumes("size-"+attach, "ext4", map[string]string{"size": "large"}),
		volumes("key-"+attach, "ext4", map[string]string{"colour": "blue"}),
		volumes("fs-"+attach, "reiserfs", nil)))
	defer k.end()
	for _, wrong := range [][2]string{
		{"none-", "not-found"},
		{"size-", "option size"},
		{"key-", "there is no option"},
		{"fs-", "reiserfs"},
	} {
		pod := newPod("pod-"+wrong[0]+attach, wrong[0]+attach)
		before := mark(t)
		k.pods.AddPod(pod)
		k.told(pod, before, wrong[1])
		k.pods.DeletePod(pod)
		expectAttached(t)
	}
}

// berthd cannot be reached: kubelet tries again until it can be, for both directions.
func TestWithoutBerthd(t *testing.T) {
	claim := "away-" + setting(t, "DRIVER_ATTACH")
	k := start(t, t.TempDir(), cluster(volumes(claim, "ext4", nil)))
	defer k.end()
	socket := setting(t, "BERTH_API")
	hide := func() {
		if err := os.Rename(socket, socket+".away"); err != nil {
			t.Fatal(err)
		}
	}
	show := func() {
		if err := os.Rename(socket+".away", socket); err != nil {
			t.Fatal(err)
		}
	}
	pod := newPod("pod", claim)
	hide()
	before := mark(t)
	k.pods.AddPod(pod)
	k.told(pod, before, "berthd is not reachable at")
	show()
	k.until("mount", func() bool { return k.mounted(pod) != "" })
	if err := k.manager.WaitForAttachAndMount(pod); err != nil {
		t.Fatal(err)
	}
	hide()
	k.pods.DeletePod(pod)
	k.until("unmount", func() bool { return k.mounted(pod) == "" })
	show()
	k.until("detach", func() bool { return len(attachments(t)) == 0 })
}
