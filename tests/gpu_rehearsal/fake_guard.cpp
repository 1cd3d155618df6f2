// CUDA's entry in PyTorch's list of devices, for a build of PyTorch without CUDA: a device that does nothing.
#include <c10/core/impl/DeviceGuardImplInterface.h>

C10_REGISTER_GUARD_IMPL(CUDA, c10::impl::NoOpDeviceGuardImpl<c10::DeviceType::CUDA>)
